"""Folders, on the local disk and on servers that speak S3's, Google's and Azure's protocols: the same laws on all."""

import contextlib
import os
import subprocess
import sys
import threading
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
from tests.conftest import ROOT

CALLERS = 8


@pytest.fixture(params=["local", "s3", "gs", "az"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Folder:
    base = str(tmp_path) if request.param == "local" else request.getfixturevalue(request.param)
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


class TestBounds:
    @pytest.mark.parametrize("size", [0, 1, 99, 100])
    def test_a_file_up_to_the_limit_is_read(self, folder: Folder, size: int) -> None:
        folder.write("a", bytes(size))
        assert folder.read("a", 100) == bytes(size)

    def test_a_larger_one_is_not(self, folder: Folder) -> None:
        folder.write("a", bytes(101))
        with pytest.raises(TooLargeError) as caught:
            folder.read("a", 100)
        assert str(caught.value) == f"{folder}/a: larger than 100 bytes, the limit for this file"

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
        code = f"import sys; sys.modules[{module!r}] = None\nfrom pipelines.storage.folder import Folder; Folder('{scheme}://b/x')"
        done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
        assert done.stderr.splitlines()[-1] == (
            f"pipelines.storage.errors.StorageError: {scheme}://b/x: {scheme}:// needs another package: "
            f"pip install 'ganmill[{scheme}]'"
        )

    def test_joining_adds_a_name(self, tmp_path: Path) -> None:
        assert str(Folder(str(tmp_path)) / "a" / "b") == f"{tmp_path}/a/b"
