"""Folders, on the local disk and on servers that speak S3's, Google's and Azure's protocols: the same laws on all."""

import contextlib
import json
import os
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import boto3
import pytest
from azure.storage.blob import BlobServiceClient

from pipelines.storage.folder import Folder, MissingError, StorageError, TooLargeError, normalise
from tests import emulators
from tests.conftest import ROOT, PointAt
from tests.faults import Answering, FaultyProxy

CALLERS = 8
DENIED = "permission denied; check the credentials in the environment, and what they may do"


@pytest.fixture(params=["local", "s3", "gs", "az"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Folder:
    base = str(tmp_path) if request.param == "local" else request.getfixturevalue("s3")
    return Folder(f"{base}/store")


def outside(folder: Folder, name: str, content: bytes | None) -> None:
    """Write or delete a file behind the folder's back, as another machine does, by the store's own client."""
    scheme, _, place = folder.url.partition("://")
    bucket, _, prefix = place.partition("/")
    key = f"{prefix}/{name}"
    if scheme == "s3":
        client = boto3.client("s3")
        if content is None:
            client.delete_object(Bucket=bucket, Key=key)
        else:
            client.put_object(Bucket=bucket, Key=key, Body=content)
    elif scheme == "gs":
        server, quoted = os.environ["STORAGE_EMULATOR_HOST"], urllib.parse.quote(key, safe="")
        post = f"{server}/upload/storage/v1/b/{bucket}/o?uploadType=media&name={quoted}"
        delete = f"{server}/storage/v1/b/{bucket}/o/{quoted}"
        with contextlib.suppress(urllib.error.HTTPError):
            url, method = (delete, "DELETE") if content is None else (post, "POST")
            urllib.request.urlopen(urllib.request.Request(url, content, method=method)).close()
    elif scheme == "az":
        with BlobServiceClient.from_connection_string(os.environ["AZURE_STORAGE_CONNECTION_STRING"]) as service:
            blob = service.get_blob_client(bucket, key)
            if content is not None:
                blob.upload_blob(content, overwrite=True)
            elif blob.exists():
                blob.delete_blob()
    elif content is None:
        Path(folder.url, name).unlink(missing_ok=True)
    else:
        Path(folder.url, name).parent.mkdir(parents=True, exist_ok=True)
        Path(folder.url, name).write_bytes(content)


class TestOnEveryStore:
    def test_a_folder_that_is_not_there_is_empty(self, folder: Folder) -> None:
        assert folder.list() == folder.list("below") == folder.tree() == {}

    @pytest.mark.parametrize("name", ["a", "shards/000000.tar", "deep/er/still.bin", "with space.txt", "grün+%41.png"])
    @pytest.mark.parametrize("data", [b"", b"x", bytes(range(256)) * 4097], ids=len)
    def test_what_was_written_is_read(self, folder: Folder, name: str, data: bytes) -> None:
        folder.write(name, data)
        assert folder.read(name) == data
        assert folder.tree() == {name: len(data)}

    def test_a_write_replaces_what_was_there(self, folder: Folder) -> None:
        for data in (b"long before", b"now"):
            folder.write("a", data)
            assert (folder.read("a"), folder.list()) == (data, {"a": len(data)})

    def test_list_is_one_folder_and_tree_is_all_below_it(self, folder: Folder) -> None:
        for name in ("top", "d/one", "d/two", "d/deep/three"):
            folder.write(name, name.encode())
        assert folder.list() == {"top": 3}
        assert folder.list("d") == (folder / "d").list() == {"one": 5, "two": 5}
        assert folder.tree() == {"top": 3, "d/one": 5, "d/two": 5, "d/deep/three": 12}
        assert (folder / "d").tree() == {"one": 5, "two": 5, "deep/three": 12}

    def test_a_folder_whose_name_begins_alike_is_another_folder(self, folder: Folder) -> None:
        folder.write("real/a", b"1")
        folder.write("real-2/b", b"2")
        assert folder.list("real") == (folder / "real").tree() == {"a": 1}

    def test_hidden_files_are_neither_listed_nor_in_the_tree(self, folder: Folder) -> None:
        for name in ("a", ".a.0123.tmp", "d/.b.tmp", ".git/config"):
            folder.write(name, b"x")
        assert (folder.list(), folder.list("d"), folder.tree()) == ({"a": 1}, {}, {"a": 1})

    def test_a_listing_sees_what_another_wrote_or_deleted_since(self, folder: Folder) -> None:
        seen = []
        for content in (None, b"1", b"22", None):
            outside(folder, "d/a", content)
            seen.append((folder.list("d"), folder.tree(), folder.exists("d/a")))
        there = [({"a": size}, {"d/a": size}, True) for size in (1, 2)]
        assert seen == [({}, {}, False), *there, ({}, {}, False)]

    def test_a_range_is_those_bytes_of_the_file(self, folder: Folder) -> None:
        data = bytes(range(200))
        folder.write("a", data)
        for offset in (0, 1, 100, 199):
            for size in (1, 2, 100, 200):
                if offset + size <= len(data):
                    assert folder.read_range("a", offset, size) == data[offset : offset + size]

    @pytest.mark.parametrize(("offset", "size"), [(0, 201), (150, 51), (199, 2), (200, 1), (5000, 10)])
    def test_a_range_past_the_end_says_that_the_file_is_cut_short(self, folder: Folder, offset: int, size: int) -> None:
        folder.write("a", bytes(200))
        with pytest.raises(StorageError, match=r"the file is cut short$") as caught:
            folder.read_range("a", offset, size)
        assert str(caught.value).startswith(f"{folder}/a: ")

    def test_reading_what_is_not_there_is_an_error_that_names_it(self, folder: Folder) -> None:
        folder.write("a", b"x")
        with pytest.raises(MissingError) as caught:
            folder.read("b/c")
        assert str(caught.value) == f"{folder}/b/c: not found"
        with pytest.raises(MissingError) as caught:
            folder.read_range("b", 0, 1)
        assert str(caught.value) == f"{folder}/b: not found"

    def test_exists_is_true_of_files_only(self, folder: Folder) -> None:
        folder.write("d/a", b"x")
        assert [folder.exists(name) for name in ("d/a", "d/b", "d", "e")] == [True, False, False, False]

    def test_delete_removes_the_file_and_is_content_without_one(self, folder: Folder) -> None:
        folder.write("a", b"x")
        folder.write("b", b"y")
        folder.delete("a")
        folder.delete("a")
        assert folder.list() == {"b": 1}

    def test_create_never_replaces(self, folder: Folder) -> None:
        assert folder.create("d/claim", b"first") is True
        assert folder.create("d/claim", b"second") is False
        folder.delete("d/claim")
        folder.write("d/claim", b"third")
        assert folder.create("d/claim", b"fourth") is False
        assert folder.read("d/claim") == b"third"
        assert folder.tree() == {"d/claim": 5}

    def test_of_many_creators_at_once_exactly_one_wins_and_its_content_stays(self, folder: Folder) -> None:
        for turn in range(3):
            gate = threading.Barrier(CALLERS)

            def create(caller: int, name: str = f"claim-{turn}", gate: threading.Barrier = gate) -> bool:
                mine = Folder(folder.url)
                gate.wait()
                return mine.create(name, b"%d" % caller)

            with ThreadPoolExecutor(CALLERS) as pool:
                won = list(pool.map(create, range(CALLERS)))
            assert sum(won) == 1
            assert folder.read(f"claim-{turn}") == b"%d" % won.index(True)

    def test_a_reader_sees_one_whole_version_while_many_write(self, folder: Folder) -> None:
        versions = {bytes([caller]) * 70_000 for caller in range(CALLERS)}
        folder.write("a", bytes(70_000))
        with ThreadPoolExecutor(CALLERS) as pool:
            writers = [pool.submit(folder.write, "a", data) for data in versions]
            reads, listings = [folder.read("a")], [folder.list()]
            while not all(writer.done() for writer in writers):
                reads.append(folder.read("a"))
                listings.append(folder.list())
        assert {folder.read("a"), *reads} <= versions
        assert [listing for listing in listings if listing != {"a": 70_000}] == []
        for writer in writers:
            writer.result()

    def test_only_the_url_travels_to_another_process(self, folder: Folder) -> None:
        folder.write("a", b"x")
        make, arguments = folder.__reduce__()
        assert arguments == (folder.url,)
        assert make(*arguments).read("a") == b"x"

    def test_sweep_leaves_every_file_that_has_a_name(self, folder: Folder) -> None:
        folder.write("d/a", b"x")
        folder.sweep("d")
        folder.sweep("not there")
        assert folder.tree() == {"d/a": 1}


class TestOnTheLocalDisk:
    def test_what_a_crashed_writer_left_is_not_listed_and_is_swept(self, tmp_path: Path) -> None:
        folder = Folder(str(tmp_path))
        folder.write("shards/000000.tar", b"x")
        for leftover in (".000001.tar.0a1b2c3d4e5f.tmp", ".000000.tar.ffffffffffff.tmp"):
            (tmp_path / "shards" / leftover).write_bytes(b"half")
        (tmp_path / "shards" / ".keep").touch()
        (tmp_path / ".other.tmp").touch()
        assert folder.list("shards") == {"000000.tar": 1}
        folder.sweep("shards")
        assert sorted(path.name for path in tmp_path.rglob("*")) == [".keep", ".other.tmp", "000000.tar", "shards"]

    def test_nothing_temporary_is_left_by_writes_creates_and_refusals(self, tmp_path: Path) -> None:
        folder = Folder(str(tmp_path))
        (tmp_path / "taken").mkdir()
        folder.write("a", b"x")
        folder.create("b", b"x")
        folder.create("b", b"y")
        with pytest.raises(OSError, match=f"^{folder}/taken: "):
            folder.write("taken", b"x")
        assert sorted(path.name for path in tmp_path.rglob("*")) == ["a", "b", "taken"]

    @pytest.mark.parametrize("publish", [Folder.write, Folder.create])
    def test_a_file_in_the_place_of_a_folder_is_named(self, tmp_path: Path, publish: type[Folder.write]) -> None:
        (tmp_path / "file").touch()
        with pytest.raises(StorageError) as caught:
            publish(Folder(f"{tmp_path}/file"), "dataset.json", b"x")
        assert str(caught.value) == f"{tmp_path}/file/dataset.json: a file is where its folder should be"

    def test_a_file_url_and_a_path_are_the_same_folder(self, tmp_path: Path) -> None:
        Folder(f"file://{tmp_path}").write("a", b"x")
        assert Folder(str(tmp_path)).read("a") == b"x"

    def test_the_root_of_the_file_system_is_a_folder_like_any_other(self) -> None:
        expected = {path.name for path in Path("/").iterdir() if path.is_file() and not path.name.startswith(".")}
        assert {*Folder("/").list()} == expected
        assert Folder("/").list("etc")["passwd"] == len(Folder("/").read("etc/passwd"))


class TestOnObjectStores:
    @pytest.mark.parametrize("scheme", ["s3", "gs", "az"])
    @pytest.mark.parametrize("call", ["list", "tree", "read", "read_range", "write", "create"])
    def test_a_bucket_that_does_not_exist_is_an_error_at_once(
        self, scheme: str, call: str, request: pytest.FixtureRequest
    ) -> None:
        request.getfixturevalue(scheme)
        arguments = {"read": ["a"], "read_range": ["a", 0, 1], "write": ["a", b""], "create": ["a", b""]}.get(call, [])
        url = f"{scheme}://no-such-bucket-here/x"
        with pytest.raises(StorageError) as caught:
            getattr(Folder(url), call)(*arguments)
        hint = " and AWS_ENDPOINT_URL" if scheme == "s3" else ""
        assert str(caught.value) == (
            f"{url}{'/a' if arguments else ''}: the bucket does not exist; create it, or check the name{hint}"
        )

    @pytest.mark.parametrize("scheme", ["s3", "gs", "az"])
    def test_more_files_than_a_page_of_a_listing_holds(self, scheme: str, request: pytest.FixtureRequest) -> None:
        """S3 and Google give 1,000 a page, Azure 5,000; the emulator of the last two pages only when asked."""
        folder = Folder(f"{request.getfixturevalue(scheme)}/many")
        names = {f"{n:04d}" for n in range(1001)}
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(lambda name: folder.write(f"d/{name}", b"x"), names))
        assert folder.list("d") == dict.fromkeys(names, 1)
        assert folder.tree() == {f"d/{name}": 1 for name in names}

    @pytest.mark.parametrize("scheme", ["s3", "gs", "az"])
    def test_an_upload_in_parts_is_whole(self, scheme: str, request: pytest.FixtureRequest) -> None:
        """s3fs begins parts at 100 MiB, gcsfs at 50, Azure's client at 64."""
        folder = Folder(f"{request.getfixturevalue(scheme)}/large")
        data = bytes(range(251)) * ((101 << 20) // 251)
        folder.write("a", data)
        assert folder.list() == {"a": len(data)}
        assert folder.read("a", len(data)) == data
        assert folder.read_range("a", 77 << 20, 300) == data[77 << 20 : (77 << 20) + 300]
        with pytest.raises(TooLargeError):
            folder.read("a", len(data) - 1)

    @pytest.mark.parametrize(
        ("scheme", "status", "code", "text", "words"),
        [
            ("s3", 403, "RequestTimeTooSkewed", "", "this machine's clock is off; set it right"),
            ("s3", 400, "ExpiredToken", "", "the session token has expired; renew it"),
            ("s3", 403, "AccessDenied", "", DENIED),
            ("s3", 400, "AuthorizationHeaderMalformed", "", "the bucket is in another region; set AWS_REGION"),
            ("gs", 401, "authError", "Invalid Credentials", DENIED),
            ("gs", 403, "forbidden", "does not have storage.objects.create access", DENIED),
            ("gs", 400, "invalid", "Invalid bucket name: 'x'", "refused: "),
            (
                "az",
                403,
                "AuthenticationFailed",
                "Request date header too old: 'x'",
                "this machine's clock is off; set it",
            ),
            (
                "az",
                403,
                "AuthenticationFailed",
                "Signature not valid in the specified time frame",
                "the access signature has expired (or this machine's clock is off); renew it",
            ),
            (
                "az",
                403,
                "AuthenticationFailed",
                "The MAC signature found in the HTTP request 'x' is not the same as any computed signature",
                "the account key is wrong; check AZURE_STORAGE_CONNECTION_STRING or AZURE_STORAGE_ACCOUNT_KEY",
            ),
            ("az", 403, "AuthorizationPermissionMismatch", "not authorized", DENIED),
        ],
    )
    def test_the_usual_failures_are_said_in_words(
        self, scheme: str, status: int, code: str, text: str, words: str, point_at: PointAt
    ) -> None:
        """By a server that gives the answer that the store's documentation has for it."""
        error: dict[str, object] = {"error": {"code": status, "message": text, "errors": [{"reason": code}]}}
        xml = f"<Error><Code>{code}</Code><Message>{text}</Message></Error>"
        body = json.dumps(error) if scheme == "gs" else f'<?xml version="1.0" encoding="utf-8"?>{xml}'
        headers = {"Content-Type": "application/xml", "x-ms-error-code": code}
        with Answering(status, body.encode(), headers) as server:
            point_at(scheme, server.url)
            with pytest.raises(StorageError) as caught:
                Folder(f"{scheme}://bucket/x").write("a", b"1")
        assert str(caught.value).startswith(f"{scheme}://bucket/x/a: {words}")

    def test_a_wrong_key_is_said_by_azure(
        self, az: str, az_server: str, point_at: PointAt, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        point_at("az", az_server)
        for name, value in emulators.azure_environment(az_server, "d3Jvbmc=").items():
            monkeypatch.setenv(name, value)
        with pytest.raises(StorageError, match=r"permission denied|the account key is wrong"):
            Folder(f"{az}/x").write("a", b"1")

    @pytest.mark.parametrize(
        "scheme", [pytest.param("s3", marks=pytest.mark.long), "gs", pytest.param("az", marks=pytest.mark.long)]
    )
    def test_a_body_that_comes_in_drops_is_ended(self, scheme: str, point_at: PointAt) -> None:
        with Answering(206, bytes(1000), {"Content-Range": "bytes 0-999/1000"}, drip_s=0.2) as server:
            point_at(scheme, server.url)
            folder = Folder(f"{scheme}://bucket/x")
            folder.call_s = 0.5
            started = time.monotonic()
            with pytest.raises(OSError, match=f"^{folder}/a: gave up after 6 attempts: "):
                folder.read("a", 100)
        assert time.monotonic() - started < 60

    @pytest.mark.parametrize(
        "kind",
        [
            "slow_down",
            "late_reset",
            "cut",
            *(pytest.param(k, marks=pytest.mark.long) for k in ("reset", "late_error")),
        ],
    )
    @pytest.mark.parametrize("scheme", ["gs", "az"])
    def test_every_call_outlasts_a_store_that_fails_twice(
        self, scheme: str, kind: str, request: pytest.FixtureRequest, point_at: PointAt
    ) -> None:
        """As on S3, where test_storage_faults.py has it. Unlike there a cut goes to uploads' answers too."""
        base, server = request.getfixturevalue(scheme), request.getfixturevalue(f"{scheme}_server")
        Folder(f"{base}/x").write("b", b"22" * 50)
        with FaultyProxy(server, stall_s=30.0) as proxy:
            point_at(scheme, proxy.url)
            folder = Folder(f"{base}/x")

            def twice() -> None:
                left = iter(range(2))
                proxy.kinds, proxy.where = {kind: 1.0}, lambda method, path: next(left, None) is not None

            twice()
            folder.write("a", b"11")
            twice()
            assert folder.read("a", 10) == b"11"
            twice()
            assert folder.read_range("b", 1, 50) == b"2" * 50
            twice()
            assert folder.tree() == {"a": 2, "b": 100}
            twice()
            assert folder.exists("a")
            twice()
            folder.delete("a")
            proxy.kinds = {}
            assert folder.list() == {"b": 100}
            assert proxy.counts[kind] >= (6 if kind == "cut" else 12)

    @pytest.mark.long
    @pytest.mark.parametrize("scheme", ["gs", "az"])
    def test_a_store_that_says_nothing_is_asked_again(
        self, scheme: str, request: pytest.FixtureRequest, point_at: PointAt
    ) -> None:
        base, server = request.getfixturevalue(scheme), request.getfixturevalue(f"{scheme}_server")
        Folder(f"{base}/x").write("a", b"1")
        once = iter([True])
        with FaultyProxy(server, {"stall": 1.0}, stall_s=100.0, where=lambda method, path: next(once, False)) as proxy:
            point_at(scheme, proxy.url)
            started = time.monotonic()
            assert Folder(f"{base}/x").read("a", 10) == b"1"
        assert 15 < time.monotonic() - started < 60


class TestBounds:
    @pytest.mark.parametrize("size", [0, 1, 99, 100])
    def test_a_file_up_to_the_limit_is_read(self, folder: Folder, size: int) -> None:
        folder.write("a", bytes(size))
        assert folder.read("a", 100) == bytes(size)

    def test_a_larger_one_is_not(self, folder: Folder) -> None:
        folder.write("a", bytes(101))
        with pytest.raises(TooLargeError) as caught:
            folder.read("a", 100)
        assert str(caught.value) == f"{folder}/a: more than 100 bytes, which is all that it may have"

    @pytest.mark.parametrize("name", ["../a", "a/../../b", "/etc/passwd", "a\0b", ".."])
    @pytest.mark.parametrize("call", [Folder.read, Folder.list, Folder.exists, Folder.delete, Folder.__truediv__])
    def test_a_name_that_leads_out_is_refused(self, folder: Folder, name: str, call: Callable[..., object]) -> None:
        with pytest.raises(StorageError, match=r"is not a name below this folder$"):
            call(folder, name)

    @pytest.mark.parametrize("kind", ["pipe", "device"])
    def test_only_regular_files_are_read(self, tmp_path: Path, kind: str) -> None:
        if kind == "pipe":
            os.mkfifo(tmp_path / "a")
        else:
            (tmp_path / "a").symlink_to("/dev/zero")
        with pytest.raises(StorageError) as caught:
            Folder(str(tmp_path)).read("a")
        assert str(caught.value) == f"{tmp_path}/a: not a regular file"


class TestEndpoints:
    @pytest.mark.parametrize(
        "host",
        [
            "169.254.169.254",
            "169.254.0.7",
            "2852039166",
            "0xA9FEA9FE",
            "0251.0376.0251.0376",
            "169.16689662",
            "[::ffff:169.254.169.254]",
            "[::ffff:a9fe:a9fe]",
            "[64:ff9b::a9fe:a9fe]",
            "[2002:a9fe:a9fe::1]",
            "[fd00:ec2::254]",
            "[fe80::1]",
            "metadata.google.internal",
            "METADATA.google.internal.",
            "100.100.100.200",
            "192.0.0.192",
            "168.63.129.16",
        ],
    )
    @pytest.mark.parametrize("scheme", ["s3", "gs", "az"])
    def test_the_address_of_a_metadata_service_is_refused(self, scheme: str, host: str, point_at: PointAt) -> None:
        point_at(scheme, f"http://{host}:80")
        variable = {
            "s3": "AWS_ENDPOINT_URL",
            "gs": "STORAGE_EMULATOR_HOST",
            "az": "AZURE_STORAGE_CONNECTION_STRING",
        }[scheme]
        with pytest.raises(StorageError, match=r"no store is there$") as caught:
            Folder(f"{scheme}://bucket/x").read("a")
        assert str(caught.value).startswith(f"{variable} is http://")

    def test_a_profile_in_the_home_folder_cannot_name_it_either(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, point_at: PointAt
    ) -> None:
        point_at("s3", "http://unused")
        monkeypatch.delenv("AWS_ENDPOINT_URL")
        (tmp_path / "config").write_text("[default]\nendpoint_url = http://169.254.169.254/\n")
        monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
        with pytest.raises(StorageError, match=r"no store is there$"):
            Folder("s3://bucket/x")

    def test_a_bucket_that_is_called_so_is_asked_of_the_endpoint(self, s3: str) -> None:
        with pytest.raises(StorageError, match=r"the bucket does not exist|not a bucket's name|not found"):
            Folder("s3://169.254.169.254/latest").read("meta-data")


class TestOnS3:
    def test_what_was_begun_and_not_completed_is_aborted(self, s3: str) -> None:
        """A process that dies during a large upload leaves its parts. moto gives them all the date of 2010."""
        client, bucket = boto3.client("s3"), s3.removeprefix("s3://")

        def begun() -> set[str]:
            return {upload["Key"] for upload in client.list_multipart_uploads(Bucket=bucket).get("Uploads", [])}

        for key in ("data/shards/000001.tar", "data-2/shards/000001.tar"):
            upload = client.create_multipart_upload(Bucket=bucket, Key=key)["UploadId"]
            client.upload_part(Bucket=bucket, Key=key, UploadId=upload, PartNumber=1, Body=bytes(5 << 20))
        folder = Folder(f"{s3}/data")
        folder.abort_uploads(older_s=100 * 365 * 86_400)
        assert begun() == {"data/shards/000001.tar", "data-2/shards/000001.tar"}
        folder.abort_uploads()
        assert begun() == {"data-2/shards/000001.tar"}

    def test_a_whole_bucket_is_a_folder(self, s3: str) -> None:
        Folder(s3).write("a", b"x")
        Folder(f"{s3}/d").write("b", b"yy")
        assert Folder(f"{s3}/").list() == {"a": 1}
        assert Folder(s3).tree() == {"a": 1, "d/b": 2}

    def test_a_scheme_is_the_same_in_capitals(self, s3: str) -> None:
        Folder(f"{s3}/x").write("a", b"x")
        assert Folder(f"{s3}/x".replace("s3://", "S3://")).read("a") == b"x"


class TestUrls:
    @pytest.mark.parametrize(
        ("url", "normal"),
        [
            ("/a/b", "/a/b"),
            ("/a/b/", "/a/b"),
            ("/a/../b//c/.", "/b/c"),
            ("/", "/"),
            ("file:///a/b/", "/a/b"),
            ("s3://bucket", "s3://bucket"),
            ("s3://bucket/", "s3://bucket"),
            ("s3://bucket/a/b//", "s3://bucket/a/b"),
            ("S3://Bucket/A", "s3://Bucket/A"),
            ("gs://bucket/a", "gs://bucket/a"),
            ("az://container/a", "az://container/a"),
        ],
    )
    def test_a_url_has_one_normal_form(self, url: str, normal: str) -> None:
        assert normalise(url) == normal
        assert normalise(normal) == normal

    def test_a_relative_path_is_taken_from_the_working_directory(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(tmp_path)
        folder = Folder("data/real")
        folder.write("a", b"x")
        assert folder.url == f"{tmp_path}/data/real"
        assert (tmp_path / "data" / "real" / "a").read_bytes() == b"x"
        assert normalise(".") == normalise("x/..") == str(tmp_path)

    def test_a_tilde_is_the_home_folder(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("HOME", str(tmp_path))
        assert normalise("~/data") == f"{tmp_path}/data"

    @pytest.mark.parametrize(
        ("url", "message"),
        [
            ("", "an empty path: give a folder or a URL"),
            ("http://host/x", "http://host/x: scheme 'http' is not one of file, s3, gs, az"),
            ("pipe://ls", "pipe://ls: scheme 'pipe' is not one of file, s3, gs, az"),
            ("s3:///x", "s3:///x: no bucket; write s3://bucket/prefix"),
            ("s3://", "s3://: no bucket; write s3://bucket/prefix"),
            ("file://data/x", "file://data/x: a local file has no host; write file:///data/x"),
        ],
    )
    def test_what_is_not_allowed_is_said(self, url: str, message: str) -> None:
        with pytest.raises(StorageError) as caught:
            Folder(url)
        assert str(caught.value) == message

    @pytest.mark.parametrize(
        "url", ["s3://key:hush@bucket/x", "s3://hush@bucket", "s3://bucket/x?secret=hush", "http://u:hush@bucket/x"]
    )
    def test_a_url_with_credentials_is_refused_and_they_are_not_shown(self, url: str) -> None:
        with pytest.raises(StorageError) as caught:
            Folder(url)
        scheme = url.split(":")[0]
        assert str(caught.value) == (
            f"{scheme}://bucket...: no credentials or options in a URL; set them in the environment"
        )

    @pytest.mark.parametrize(("scheme", "module"), [("gs", "gcsfs"), ("az", "adlfs")])
    def test_a_store_whose_package_is_not_installed_is_said(self, scheme: str, module: str) -> None:
        code = f"import sys; sys.modules[{module!r}] = None\nfrom pipelines.storage import Folder; Folder('{scheme}://b/x')"
        done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
        assert done.stderr.splitlines()[-1] == (
            f"pipelines.storage.StorageError: {scheme}://b/x: {scheme}:// needs another package: "
            f"pip install 'ganmill[{scheme}]'"
        )

    def test_joining_adds_a_name(self, tmp_path: Path) -> None:
        assert str(Folder(str(tmp_path)) / "a" / "b") == f"{tmp_path}/a/b"
