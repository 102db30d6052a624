"""Object storage that fails as stores do, call by call: every one is asked again, or given up with a word.

The S3 server is real, and reached through a proxy (tests/faults.py) that cuts, delays and refuses.
"""

import random
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

import pytest
from s3fs import S3FileSystem

from pipelines.storage.folder import Folder, StorageError
from tests.faults import KINDS, FaultyProxy


def fail_first(proxy: FaultyProxy, kind: str, times: int) -> None:
    """From now on each request (by method and path) meets this fault so many times, and then works."""
    met: Counter[tuple[str, str]] = Counter()

    def where(method: str, path: str) -> bool:
        met[method, path] += 1
        return met[method, path] <= times

    proxy.counts.clear()
    proxy.where = where
    proxy.kinds = {kind: 1.0}


@pytest.mark.parametrize("kind", KINDS)
def test_every_call_outlasts_a_storage_that_fails_four_times_running(kind: str, proxy: FaultyProxy, s3: str) -> None:
    proxy.stall_s = 0.1
    folder = Folder(f"{s3}/out")
    data = random.Random(kind).randbytes(300_000)
    for name in ("read", "range", "looked-at", "deleted", "listed/one"):
        folder.write(name, data)
    fail_first(proxy, kind, 4)
    with ThreadPoolExecutor(7) as callers:
        read = callers.submit(folder.read, "read")
        part = callers.submit(folder.read_range, "range", 1000, 200_000)
        listed = callers.submit(folder.list, "listed")
        there = callers.submit(folder.exists, "looked-at")
        calls = [
            callers.submit(folder.write, "written", data),
            callers.submit(folder.create, "created", data),  # may say False, if the answer to its PUT was lost
            callers.submit(folder.delete, "deleted"),
        ]
        assert read.result() == data
        assert part.result() == data[1000:201_000]
        assert listed.result() == {"one": len(data)}
        assert there.result()
        for call in calls:
            call.result()
    # A read is a HEAD and a GET. Only three requests have an answer that can be cut short.
    assert proxy.counts == {kind: 4 * (3 if kind == "cut" else 8)}
    proxy.kinds = {}
    assert folder.list() == dict.fromkeys(("read", "range", "looked-at", "written", "created"), len(data))
    assert folder.read("written") == folder.read("created") == data


@pytest.mark.slow
def test_storage_that_says_nothing_is_asked_again_and_one_that_never_comes_back_is_given_up_not_taken_for_empty(
    s3: str, s3_server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    started = time.monotonic()
    with ExitStack() as proxies, ThreadPoolExecutor(16) as callers:

        def behind(kind: str) -> tuple[Folder, FaultyProxy]:
            proxy = proxies.enter_context(FaultyProxy(s3_server, stall_s=100.0))
            monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
            S3FileSystem.clear_instance_cache()
            folder = Folder(f"{s3}/{kind}")
            folder.write("old", bytes(1000))  # now it has its connections
            proxy.kinds = {kind: 1.0}
            return folder, proxy

        silent, proxy = behind("stall")
        fail_first(proxy, "stall", 1)
        proxy.where = lambda method, path, once=proxy.where: method != "HEAD" and once(method, path)
        heard = [
            callers.submit(silent.read, "old"),
            callers.submit(silent.write, "new", b""),
            callers.submit(silent.list),
        ]
        lost = []
        for kind in ("slow_down", "reset", "late_error", "cut"):
            folder, _ = behind(kind)
            lost += [callers.submit(folder.read, "old"), callers.submit(folder.list)]
            lost += [callers.submit(folder.exists, "old")] if kind != "cut" else []
        for call in lost:
            with pytest.raises(OSError, match=r"gave up after 6 attempts|check AWS_ENDPOINT_URL"):
                call.result()
        assert [call.result() for call in heard[:2]] == [bytes(1000), None]
        assert heard[2].result()["old"] == 1000
        assert proxy.counts == {"stall": 3}
    S3FileSystem.clear_instance_cache()
    assert 19 < time.monotonic() - started < 60  # read_timeout is 20 s


@pytest.mark.slow
@pytest.mark.parametrize(
    ("request_", "kind"), [("uploads", "late_error"), ("partNumber=2", "reset"), ("uploadId=", "late_error")]
)
def test_a_large_shard_sent_in_parts_outlasts_a_fault_at_each_of_its_requests(
    kind: str, request_: str, proxy: FaultyProxy, s3: str
) -> None:
    folder = Folder(f"{s3}/out")
    data = random.Random(kind).randbytes(105 << 20)
    once = iter([True])
    proxy.kinds = {kind: 1.0}
    proxy.where = lambda method, path: request_ in path and method != "GET" and next(once, False)
    folder.write("large", data)
    assert proxy.counts == {kind: 1}
    assert folder.read("large") == data


def test_refused_credentials_are_final_at_the_first_answer(proxy: FaultyProxy, s3: str) -> None:
    folder = Folder(f"{s3}/out")
    folder.write("old", b"content")
    proxy.refuse = True
    calls: list[Callable[[], object]] = [
        lambda: folder.read("old"),
        lambda: folder.write("new", b"x"),
        lambda: folder.create("claim", b"x"),
        lambda: folder.list(),
        lambda: folder.exists("old"),
    ]
    for number, call in enumerate(calls, 1):
        with pytest.raises(StorageError, match="permission denied"):
            call()
        assert proxy.counts["refused"] == number
