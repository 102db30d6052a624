"""The local disk: temporary files, links, devices; what other stores do not have."""

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from pipelines.storage.folder import Folder, StorageError
from tests.processes import until


def test_what_a_crashed_writer_left_is_not_listed_and_is_swept(tmp_path: Path) -> None:
    folder = Folder(str(tmp_path))
    folder.write("shards/000000.tar", b"x")
    for leftover in (".000001.tar.0a1b2c3d4e5f.tmp", ".000000.tar.ffffffffffff.tmp"):
        (tmp_path / "shards" / leftover).write_bytes(b"half")
    (tmp_path / "shards" / ".keep").touch()
    (tmp_path / ".other.tmp").touch()
    assert folder.list("shards") == {"000000.tar": 1}
    folder.sweep("shards")
    assert sorted(path.name for path in tmp_path.rglob("*")) == [".keep", ".other.tmp", "000000.tar", "shards"]


def test_nothing_temporary_is_left_by_writes_creates_and_refusals(tmp_path: Path) -> None:
    folder = Folder(str(tmp_path))
    (tmp_path / "taken").mkdir()
    folder.write("a", b"x")
    folder.create("b", b"x")
    folder.create("b", b"y")
    with pytest.raises(OSError, match=f"^{folder}/taken: "):
        folder.write("taken", b"x")
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["a", "b", "taken"]


@pytest.mark.parametrize("publish", [Folder.write, Folder.create])
def test_a_file_in_the_place_of_a_folder_is_named(tmp_path: Path, publish: type[Folder.write]) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StorageError) as caught:
        publish(Folder(f"{tmp_path}/file"), "dataset.json", b"x")
    assert str(caught.value) == f"{tmp_path}/file/dataset.json: a file is where its folder should be"


def test_a_file_url_and_a_path_are_the_same_folder(tmp_path: Path) -> None:
    Folder(f"file://{tmp_path}").write("a", b"x")
    assert Folder(str(tmp_path)).read("a") == b"x"


def test_the_root_of_the_file_system_is_a_folder_like_any_other() -> None:
    expected = {path.name for path in Path("/").iterdir() if path.is_file() and not path.name.startswith(".")}
    assert {*Folder("/").list()} == expected
    assert Folder("/").list("etc")["passwd"] == len(Folder("/").read("etc/passwd"))


def test_a_local_write_outlasts_another_run_that_sweeps_its_temporary_file(tmp_path: Path) -> None:
    writer, sweeper = Folder(str(tmp_path)), Folder(str(tmp_path))
    shards = tmp_path / "shards"
    shards.mkdir()

    def sweep(written: threading.Event) -> int:
        until(lambda: written.is_set() or any(file.suffix == ".tmp" for file in shards.iterdir()), "a temporary file")
        sweeper.sweep("shards")
        return not written.is_set()

    swept = 0
    with ThreadPoolExecutor(1) as threads:
        for number in range(10, 16):
            written = threading.Event()
            sweeping = threads.submit(sweep, written)
            writer.write("shards/000000.tar", b"%d" % number * 5_000_000)  # some 10 ms
            written.set()
            swept += sweeping.result()
    assert swept > 0
    assert (shards / "000000.tar").read_bytes() == b"15" * 5_000_000
    assert [file.name for file in shards.iterdir()] == ["000000.tar"]
