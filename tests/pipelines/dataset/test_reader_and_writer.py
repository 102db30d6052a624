"""A dataset's life: claimed, begun, gone on with, sealed, opened; and every way in which its bytes could be wrong."""

import hashlib
import json
import shutil
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from pipelines import images
from pipelines.dataset import card, claim, layout, manifest, reader, shards, writer
from pipelines.dataset.identity import Identity, from_json
from pipelines.dataset.journal import Journal
from pipelines.dataset.layout import Index
from pipelines.dataset.manifest import PartError, Reject, ShardRecord
from pipelines.dataset.shards import Packed, Sample, ShardError
from pipelines.errors import CorruptError, DatasetError
from pipelines.storage.folder import Folder, MissingError

REFUSALS = (CorruptError, DatasetError, PartError, ShardError)
SETTINGS = {"source": "here", "workers": 2}
GONE = {3}  # the indices of sources that were not taken


def fields(count: int = 7, **changes: Any) -> dict[str, Any]:
    """An identity's JSON."""
    return {
        "producer": "ingest",
        "source": "0123abcd",
        "count": count,
        "shard_size": 3,
        "seed": 0,
        "image": {"format": "png", "resize": "crop", "background": [255, 255, 255]},
        "image_size": 8,
        "channels": 1,
        "classes": ["cat", "dog", "ant"],
        "arithmetic": {"numpy": "2.4.6", "opencv": "5.0.0"},
        **changes,
    }


def identity(count: int = 7, **changes: Any) -> Identity:
    return from_json(fields(count, **changes))


@cache
def image(index: int, size: int, channels: int) -> bytes:
    return images.encode(np.random.default_rng(index).integers(0, 256, (size, size, channels), np.uint8))


def commit(folder: Folder, settled: Identity, shard: int) -> ShardRecord:
    """What a worker does with one shard."""
    owned = layout.shard_range(settled, shard)
    taken = [index for index in owned if index not in GONE]
    names = len(settled.classes or [])
    samples = [
        Sample(index, image(index, settled.image_size, settled.channels), index % names if names else None)
        for index in taken
    ]
    rejects = [Reject(index, f"{index}.txt", "not an image") for index in owned if index in GONE]
    return writer.commit(folder, shard, "ingest", samples, {"source": [f"{n}.png" for n in taken]}, rejects)


def finish(folder: Folder, settled: Identity) -> Index:
    """What a job does after the claim: whatever is missing, then the seal."""
    total = layout.num_shards(settled)
    for shard in writer.missing(folder, total):
        commit(folder, settled, shard)
    parts = {shard: reader.read_part(folder, shard) for shard in range(total)}
    records = {shard: record for shard, (_, record) in parts.items()}
    extras = card.files(folder, settled, records)
    if rejects := [reject for part, _ in parts.values() for reject in part.rejects]:
        extras[layout.REJECTS] = manifest.encode_rejects(rejects)
    return writer.seal(folder, settled, records, extras)


def produce(folder: Folder, settled: Identity) -> Index:
    writer.claim(folder, settled, SETTINGS)
    return finish(folder, settled)


def verify(folder: Folder) -> int:
    """What the job of that name does; the number of samples."""
    index = reader.open_sealed(folder)
    reader.check_files(folder, index)
    return sum(reader.check_shard(folder, index, record) for record in index.shards)


def content(folder: Folder) -> dict[str, bytes]:
    return {name: folder.read(name) for name in folder.tree()}


@pytest.fixture(scope="module")
def sealed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sealed dataset of three shards, one source of which was not taken. Not to be changed."""
    path = tmp_path_factory.mktemp("sealed") / "dataset"
    produce(Folder(str(path)), identity())
    return path


@pytest.fixture
def copy(sealed: Path, tmp_path: Path) -> Folder:
    shutil.copytree(sealed, tmp_path / "copy")
    return Folder(str(tmp_path / "copy"))


class TestLife:
    @pytest.mark.parametrize("store", ["local", "s3"])
    @pytest.mark.parametrize("classes", [None, ["cat", "dog", "ant"]])
    def test_what_was_made_and_sealed_is_opened_and_verified(
        self, store: str, classes: list[str] | None, tmp_path: Path, request: pytest.FixtureRequest
    ) -> None:
        base = str(tmp_path) if store == "local" else request.getfixturevalue("s3")
        folder, settled = Folder(f"{base}/d"), identity(classes=classes, channels=3)
        index = produce(folder, settled)
        assert reader.open_sealed(folder) == index
        assert verify(folder) == 6
        assert (index.samples, index.identity, index.classes, index.image_shape) == (6, settled, classes, (8, 8, 3))
        assert [(record.shard, record.samples) for record in index.shards] == [(0, 3), (1, 2), (2, 1)]
        assert index.bytes == sum(size for name, size in folder.tree().items() if name.endswith(".tar"))
        assert {*folder.tree()} == {
            "dataset.json", "index.json", "README.md", "croissant.json", "preview.png", "rejects.parquet",
            *(f"shards/00000{n}.tar" for n in range(3)), *(f"manifest/00000{n}.parquet" for n in range(3)),
        }  # fmt: skip

    @pytest.mark.parametrize("count", [1, 2, 3, 4, 6, 7, 9, 10])
    def test_every_index_is_owned_by_exactly_one_shard(self, count: int) -> None:
        settled = identity(count)
        owned = [list(layout.shard_range(settled, shard)) for shard in range(layout.num_shards(settled))]
        assert [index for shard in owned for index in shard] == list(range(count))
        assert {len(shard) for shard in owned[:-1]} <= {3}

    def test_the_bytes_do_not_tell_how_often_or_in_which_order_shards_were_made(
        self, sealed: Path, tmp_path: Path
    ) -> None:
        folder = Folder(str(tmp_path / "d"))
        writer.claim(folder, identity(), SETTINGS)
        for shard in (2, 0, 2, 2, 0):
            commit(folder, identity(), shard)
        writer.claim(folder, identity(), {"workers": 9})
        finish(folder, identity())
        assert content(folder) == content(Folder(str(sealed)))

    def test_the_root_names_the_content_and_not_the_settings(self, sealed: Path, tmp_path: Path) -> None:
        roots = {reader.open_sealed(Folder(str(sealed))).root}
        other = Folder(str(tmp_path / "settings"))
        writer.claim(other, identity(), {"workers": 77})
        roots.add(finish(other, identity()).root)
        assert len(roots) == 1
        for n, change in enumerate(({"seed": 1}, {"classes": ["cat", "dog", "bee"]}, {"count": 6})):
            roots.add(produce(Folder(str(tmp_path / f"{n}")), identity(**change)).root)
        assert len(roots) == 4

    def test_missing_is_what_has_no_part(self, tmp_path: Path) -> None:
        folder = Folder(str(tmp_path))
        assert writer.missing(folder, 4) == [0, 1, 2, 3]
        commit(folder, identity(), 1)
        folder.write("shards/000002.tar", b"a tar whose part was not written")
        folder.write("manifest/notes.txt", b"not a part")
        folder.write("manifest/.000003.parquet.00ff.tmp", b"half of one")
        assert writer.missing(folder, 4) == [0, 2, 3]
        assert writer.missing(folder, 0) == []

    def test_samples_that_fail_to_come_publish_nothing(self, tmp_path: Path) -> None:
        def samples() -> Iterator[Sample]:
            yield Sample(0, image(0, 8, 1), None)
            raise RuntimeError("the worker died here")

        folder = Folder(str(tmp_path))
        with pytest.raises(RuntimeError, match="the worker died here"):
            writer.commit(folder, 0, "ingest", samples(), {"source": ["a"]})
        assert list(tmp_path.rglob("*")) == []

    def test_a_part_is_never_there_without_its_tar(self, tmp_path: Path) -> None:
        (tmp_path / "shards").touch()  # no tar can be written
        with pytest.raises(OSError, match="a file is where its folder should be"):
            commit(Folder(str(tmp_path)), identity(), 0)
        assert Folder(str(tmp_path)).list("manifest") == {}


class TestSeal:
    @pytest.fixture
    def begun(self, tmp_path: Path) -> tuple[Folder, dict[int, ShardRecord]]:
        folder = Folder(str(tmp_path / "d"))
        writer.claim(folder, identity(), SETTINGS)
        return folder, {shard: commit(folder, identity(), shard) for shard in range(3)}

    @pytest.mark.parametrize("name", ["shards/000001.tar", "manifest/000002.parquet"])
    @pytest.mark.parametrize("damage", ["missing", "short", "long"])
    def test_a_shard_that_is_missing_or_of_another_size_cannot_be_sealed(
        self, begun: tuple[Folder, dict[int, ShardRecord]], name: str, damage: str
    ) -> None:
        folder, records = begun
        data = folder.read(name)
        if damage == "missing":
            folder.delete(name)
        else:
            folder.write(name, data[:-1] if damage == "short" else data + b"\0")
        with pytest.raises(CorruptError) as caught:
            writer.seal(folder, identity(), records, {})
        assert str(caught.value).startswith(f"{folder}: cannot be sealed: missing or of another size: {name}; delete ")
        assert layout.SEAL not in folder.list()

    @pytest.mark.parametrize("known", [[], [0], [0, 1], [0, 2], [1, 2]])
    def test_a_shard_without_a_record_cannot_be_sealed(
        self, begun: tuple[Folder, dict[int, ShardRecord]], known: list[int]
    ) -> None:
        folder, records = begun
        with pytest.raises(CorruptError) as caught:
            writer.seal(folder, identity(), {shard: records[shard] for shard in known}, {})
        assert str(caught.value).startswith(f"{folder}: cannot be sealed: missing or of another size: shards; delete ")
        assert layout.SEAL not in folder.list()

    def test_without_all_that_is_to_be_sealed_there_is_no_seal(
        self, begun: tuple[Folder, dict[int, ShardRecord]]
    ) -> None:
        folder, records = begun
        with pytest.raises(MissingError, match=r"model/model\.json: not found"):
            writer.seal(folder, identity(), records, {"README.md": b"x"}, existing=["model/model.json"])
        assert layout.SEAL not in folder.list()

    def test_files_that_are_there_already_are_sealed_too(self, begun: tuple[Folder, dict[int, ShardRecord]]) -> None:
        folder, records = begun
        folder.write("model/model.json", b"{}")
        index = writer.seal(folder, identity(), records, {"README.md": b"x"}, existing=["model/model.json"])
        assert {*index.files} == {"README.md", "model/model.json", "dataset.json"}
        reader.check_files(folder, index)
        folder.write("model/model.json", b"[]")
        with pytest.raises(CorruptError) as caught:
            reader.check_files(folder, index)
        assert str(caught.value) == f"{folder}/model/model.json: changed after the seal (its sha256 differs)"

    def test_a_preview_shows_the_first_images_that_there_are(self, tmp_path: Path) -> None:
        settled = identity(6, shard_size=1, classes=None)
        folder = Folder(str(tmp_path))
        writer.claim(folder, settled, SETTINGS)
        for shard in range(4):  # the first sources are all refused
            writer.commit(folder, shard, "ingest", [], {"source": []}, [Reject(shard, "x", "empty")])
        index = finish(folder, settled)
        assert (index.samples, verify(folder)) == (2, 2)
        preview = images.decode(folder.read("preview.png"), 1)
        first = images.decode(image(4, 8, 1), 1).repeat(8, 0).repeat(8, 1)
        assert np.array_equal(preview[16:80, 16:80], first)

    def test_what_crashed_writers_left_is_gone_after_the_seal(self, tmp_path: Path) -> None:
        folder = Folder(str(tmp_path))
        for name in ("shards/.000000.tar.00ff.tmp", "manifest/.000000.parquet.00ff.tmp"):
            folder.write(name, b"half")
        produce(folder, identity())
        assert [path.name for path in tmp_path.rglob(".*")] == []


GENERATED = fields(
    producer="generate",
    model="ab" * 32,
    seed_start=0,
    labels=[0, 1, 2],
    batch=128,
    arithmetic={"device": "cpu AVX512", "dtype": "float32", "torch": "2.14.1"},
)


def leaves(value: Any, path: str = "") -> Iterator[str]:
    """The dotted name of every leaf of nested dicts."""
    if isinstance(value, dict):
        for name, below in value.items():
            yield from leaves(below, f"{path}.{name}" if path else name)
    else:
        yield path


def changed(settled: dict[str, Any], field: str, value: Any) -> dict[str, Any]:
    name, _, rest = field.partition(".")
    return {**settled, name: changed(settled[name], rest, value) if rest else value}


def at(settled: dict[str, Any], field: str) -> Any:
    for name in field.split("."):
        settled = settled[name]
    return settled


def told(value: Any) -> str:
    return "nothing" if value is None else json.dumps(value)


class TestClaim:
    @pytest.mark.parametrize("field", sorted({*leaves(fields()), *leaves(GENERATED)} - {"count"}))
    @pytest.mark.parametrize("value", ["other", 6, None, [9, 8]], ids=json.dumps)
    def test_another_value_in_any_field_is_refused_by_name_with_both_values(
        self, field: str, value: Any, tmp_path: Path
    ) -> None:
        folder = Folder(str(tmp_path))
        before = fields() if field in {*leaves(fields())} else GENERATED
        now = changed(before, field, value)
        if at(before, field) == value:
            now, value = changed(before, field, "another"), "another"
        assert claim.take(folder, layout.CLAIM, before, SETTINGS) == []
        [difference] = claim.take(folder, layout.CLAIM, now, SETTINGS)
        assert str(difference) == f"claimed with {field} = {told(at(before, field))}, this run has {told(value)}"
        assert content(folder) == {"dataset.json": claim.encode(before, SETTINGS)}

    def test_a_field_that_only_one_side_has_is_refused(self, tmp_path: Path) -> None:
        folder = Folder(str(tmp_path))
        writer.claim(folder, identity(), SETTINGS)
        with pytest.raises(DatasetError) as caught:
            writer.claim(folder, identity(augment=True), SETTINGS)
        assert str(caught.value) == (
            f"{folder}: claimed with augment = nothing, this run has true; "
            "use the same settings to go on, or another --output"
        )
        shorter = fields()
        del shorter["seed"]
        with pytest.raises(DatasetError, match="claimed with seed = 0, this run has nothing; "):
            writer.claim(folder, from_json(shorter), SETTINGS)

    def test_the_same_identity_goes_on_with_other_settings_and_the_claim_stays(self, tmp_path: Path) -> None:
        folder = Folder(str(tmp_path))
        for settings in (SETTINGS, {"workers": 64}):
            writer.claim(folder, identity(), settings)
        assert content(folder) == {"dataset.json": claim.encode(fields(), SETTINGS)}

    def test_a_tuple_is_the_list_that_json_makes_of_it(self, tmp_path: Path) -> None:
        folder = Folder(str(tmp_path))
        for background in ((1, 2, 3), [1, 2, 3], (1, 2, 3)):
            image = {"format": "png", "resize": "crop", "background": background}
            writer.claim(folder, identity(image=image), SETTINGS)
        assert reader.read_claim(folder).identity == identity(image={**image, "background": (1, 2, 3)})

    @pytest.mark.parametrize("damaged", [b"", b"{", b"[]", b"{}", b'"identity"', b"\xff\xfe"])
    def test_a_damaged_claim_is_refused_by_name_and_kept(self, damaged: bytes, tmp_path: Path) -> None:
        folder = Folder(str(tmp_path))
        folder.write("dataset.json", damaged)
        with pytest.raises(DatasetError, match=rf"^{folder}/dataset\.json: damaged, not a claim: .+; use another"):
            writer.claim(folder, identity(), SETTINGS)
        assert folder.read("dataset.json") == damaged

    def test_of_many_starts_at_once_with_other_settings_one_goes_on(self, tmp_path: Path) -> None:
        gate = threading.Barrier(8)

        def start(seed: int) -> int | None:
            gate.wait()
            try:
                writer.claim(Folder(str(tmp_path)), identity(seed=seed), SETTINGS)
            except DatasetError:
                return None
            return seed

        with ThreadPoolExecutor(8) as pool:
            went_on = [seed for seed in pool.map(start, range(8)) if seed is not None]
        assert went_on == [reader.read_claim(Folder(str(tmp_path))).identity.to_json()["seed"]]

    def test_many_starts_at_once_with_the_same_identity_all_go_on(self, sealed: Path, tmp_path: Path) -> None:
        folder, gate = Folder(str(tmp_path / "d")), threading.Barrier(4)

        def start(_: int) -> list[ShardRecord]:
            gate.wait()
            writer.claim(folder, identity(), SETTINGS)
            gate.wait()
            return [commit(folder, identity(), shard) for shard in range(3)]

        with ThreadPoolExecutor(4) as pool:
            first, *others = pool.map(start, range(4))
        assert others == [first] * 3
        finish(folder, identity())
        assert content(folder) == content(Folder(str(sealed)))


class TestExtension:
    @pytest.mark.parametrize("before", [1, 2, 3, 4, 5, 6])
    @pytest.mark.parametrize("after", [7, 9, 10])
    def test_a_larger_count_extends_to_what_it_would_have_been_at_once(
        self, before: int, after: int, tmp_path: Path
    ) -> None:
        grown, whole = Folder(str(tmp_path / "grown")), Folder(str(tmp_path / "whole"))
        produce(grown, identity(before))
        kept = {shard: grown.read(manifest.tar_name(shard)) for shard in range(before // 3)}
        writer.claim(grown, identity(after), SETTINGS)
        with pytest.raises(DatasetError, match="not finished"):
            reader.open_sealed(grown)
        total = layout.num_shards(identity(after))
        assert writer.missing(grown, total) == list(range(before // 3, total))  # a short last shard is done again
        finish(grown, identity(after))
        produce(whole, identity(after))
        assert content(grown) == content(whole)
        assert verify(grown) == after - len({*range(after)} & GONE)
        assert {shard: grown.read(manifest.tar_name(shard)) for shard in kept} == kept

    @pytest.mark.parametrize("steps", [1, 2])
    def test_an_extension_that_crashed_before_its_claim_leaves_what_can_be_completed(
        self, steps: int, tmp_path: Path
    ) -> None:
        folder = Folder(str(tmp_path))
        produce(folder, identity(7))
        before = content(folder)
        for name in (layout.SEAL, manifest.part_name(2))[:steps]:  # what `claim` deletes, in its order
            folder.delete(name)
        with pytest.raises(DatasetError, match="not finished"):
            reader.open_sealed(folder)
        produce(folder, identity(7))
        assert content(folder) == before

    @pytest.mark.parametrize("count", [1, 6])
    def test_a_smaller_count_is_refused_and_nothing_is_touched(self, count: int, copy: Folder) -> None:
        before = content(copy)
        with pytest.raises(DatasetError) as caught:
            writer.claim(copy, identity(count), SETTINGS)
        assert str(caught.value) == (
            f"{copy}: claimed with count = 7, this run has {count}; use the same settings to go on, or another --output"
        )
        assert content(copy) == before

    @pytest.mark.parametrize("change", [{"seed": 1}, {"classes": None}, {"arithmetic": {}}, {"source": "other"}])
    def test_a_larger_count_with_anything_else_is_refused_and_nothing_is_touched(
        self, change: dict[str, Any], copy: Folder
    ) -> None:
        before = content(copy)
        with pytest.raises(DatasetError, match=r"; use the same settings to go on, or another --output$"):
            writer.claim(copy, identity(20, **change), SETTINGS)
        assert content(copy) == before


FILES = (
    "README.md", "croissant.json", "preview.png", "rejects.parquet", "dataset.json", "index.json",
    "manifest/000000.parquet", "manifest/000001.parquet", "manifest/000002.parquet",
    "shards/000000.tar", "shards/000001.tar", "shards/000002.tar",
)  # fmt: skip


def positions(name: str, size: int) -> Iterator[tuple[int, int]]:
    """Which bytes to flip, and with what: all of the two JSON files that are parsed, a spread of every other."""
    rng = np.random.default_rng(size)
    if name in ("dataset.json", "index.json"):
        for position in range(size):
            yield position, 0x55  # among others 0 to e: 20480 to the infinite 2e480
            yield position, int(rng.integers(1, 256))
    else:
        for position in {0, size - 1, size // 2, *rng.integers(0, size, 30).tolist()}:
            yield position, int(rng.integers(1, 256))


class TestEveryByteCounts:
    def test_the_names_in_these_tests_are_all_that_a_dataset_has(self, sealed: Path) -> None:
        assert {*Folder(str(sealed)).tree()} == {*FILES}

    @pytest.mark.parametrize("name", FILES)
    def test_a_flipped_byte_is_found_and_its_file_is_named(self, name: str, copy: Folder) -> None:
        path = Path(copy.url, name)
        data = path.read_bytes()
        # Where the index holds a file's name or hash, it is that file, under that name, which is not as sealed.
        named = f"^{copy}/" if name == "index.json" else name
        for position, mask in positions(name, len(data)):
            flipped = bytearray(data)
            flipped[position] ^= mask
            path.write_bytes(flipped)
            with pytest.raises(REFUSALS, match=named):
                verify(copy)
        path.write_bytes(data)
        assert verify(copy) == 6

    @pytest.mark.parametrize("name", FILES)
    def test_a_deleted_file_is_missed_by_name(self, name: str, copy: Folder) -> None:
        copy.delete(name)
        with pytest.raises(REFUSALS) as caught:
            verify(copy)
        assert str(caught.value) == {
            "dataset.json": f"{copy}: no dataset here (dataset.json is missing); check the URL",
            "index.json": f"{copy}: not finished (index.json is missing); run the job that makes it again to "
            "complete it",
        }.get(name, f"{copy}/{name}: missing")

    @pytest.mark.parametrize("name", FILES)
    def test_a_file_that_is_cut_or_grew_is_named(self, name: str, copy: Folder) -> None:
        data = copy.read(name)
        for other in (data[:-1], data[: len(data) // 2], b"", data + b"\n"):
            copy.write(name, other)
            with pytest.raises(REFUSALS, match=name):
                verify(copy)

    @pytest.mark.parametrize("name", ["shards/000003.tar", "shards/notes.txt", "manifest/000003.parquet"])
    def test_a_shard_or_part_beside_the_sealed_ones_is_named(self, name: str, copy: Folder) -> None:
        copy.write(name, b"x")
        with pytest.raises(CorruptError) as caught:
            verify(copy)
        assert str(caught.value) == f"{copy}/{name}: not in the seal"

    def test_two_shards_that_changed_places_are_found(self, copy: Folder) -> None:
        for name in (manifest.tar_name, manifest.part_name):
            first, second = copy.read(name(0)), copy.read(name(1))
            copy.write(name(0), second)
            copy.write(name(1), first)
        with pytest.raises(CorruptError, match=r"shards/000000\.tar: "):
            verify(copy)

    @pytest.mark.parametrize("stored", [b"[]", b"{}", b"null", b'{"format":2}', b'{"format":1}', b"\xff", b""])
    def test_what_is_no_claim_or_index_is_refused_by_name(self, stored: bytes, copy: Folder) -> None:
        for name in ("index.json", "dataset.json"):
            copy.write(name, stored)
            with pytest.raises((CorruptError, DatasetError), match=name):
                reader.open_sealed(copy)

    def test_a_dataset_of_another_format_says_which(self, copy: Folder) -> None:
        claimed = json.loads(copy.read("dataset.json"))
        copy.write("dataset.json", json.dumps({**claimed, "format": 2}).encode())
        with pytest.raises(DatasetError) as caught:
            reader.open_sealed(copy)
        assert str(caught.value) == f"{copy}/dataset.json: format 2; this version reads format 1"


def relabel(packed: Packed) -> Packed:
    return replace(packed, label=[2, *packed.label[1:]])


LIES: dict[str, Callable[[Packed], Packed]] = {
    "label": relabel,
    "no label": lambda packed: replace(packed, label=[None, *packed.label[1:]]),
    "offset": lambda packed: replace(packed, offset=[packed.offset[0] + 1, *packed.offset[1:]]),
    "size": lambda packed: replace(packed, size=[packed.size[0] - 1, *packed.size[1:]]),
    "another's image": lambda packed: replace(
        packed,
        offset=[packed.offset[1], *packed.offset[1:]],
        size=[packed.size[1], *packed.size[1:]],
        sha256=[packed.sha256[1], *packed.sha256[1:]],
    ),
    "sha256": lambda packed: replace(packed, sha256=[hashlib.sha256(b"").digest(), *packed.sha256[1:]]),
}


class TestTarAndPartAgree:
    """A maker that lies consistently: the seal is right about both files, but they are not of the same samples."""

    def reseal(self, folder: Folder, tar: bytes, part: bytes) -> Index:
        folder.write(manifest.tar_name(0), tar)
        folder.write(manifest.part_name(0), part)
        records = {n: reader.read_part(folder, n)[1] for n in range(3)}
        records[0] = replace(records[0], shard=0)
        return writer.seal(folder, identity(), records, {})

    def pack(self) -> Packed:
        return shards.pack([Sample(index, image(index, 8, 1), index % 3) for index in range(3)], "png")

    def test_the_truth_passes(self, copy: Folder) -> None:
        packed = self.pack()
        index = self.reseal(copy, packed.data, manifest.encode("ingest", 0, packed, {"source": ["a"] * 3}))
        assert reader.check_shard(copy, index, index.shards[0]) == 3

    @pytest.mark.parametrize("lie", LIES)
    def test_a_row_that_is_not_of_its_sample_is_found(self, lie: str, copy: Folder) -> None:
        packed = self.pack()
        part = manifest.encode("ingest", 0, LIES[lie](packed), {"source": ["a"] * 3})
        index = self.reseal(copy, packed.data, part)
        with pytest.raises(CorruptError) as caught:
            reader.check_shard(copy, index, index.shards[0])
        assert str(caught.value) == (
            f"{copy}/shards/000000.tar: sample 000000000000 does not match its row in manifest/000000.parquet"
        )

    @pytest.mark.parametrize("indices", [[0, 1], [0, 1, 2, 3], [0, 2, 1], [1, 2, 3], [0, 1, 1]])
    def test_rows_that_are_not_those_that_the_shard_owns_are_found(self, indices: list[int], copy: Folder) -> None:
        packed = shards.pack([Sample(n, image(n, 8, 1), n % 3) for n in indices], "png")
        part = manifest.encode("ingest", 0, packed, {"source": ["a"] * len(indices)})
        index = self.reseal(copy, packed.data, part)
        with pytest.raises(CorruptError) as caught:
            reader.check_shard(copy, index, index.shards[0])
        assert str(caught.value) == f"{copy}/manifest/000000.parquet: its rows are not the indices 0 to 2"

    def test_a_part_that_calls_itself_another_shard_is_found(self, copy: Folder) -> None:
        packed = self.pack()
        index = self.reseal(copy, packed.data, manifest.encode("ingest", 1, packed, {"source": ["a"] * 3}))
        with pytest.raises(CorruptError, match=r"manifest/000000\.parquet: its rows are not the indices 0 to 2$"):
            reader.check_shard(copy, index, index.shards[0])

    def test_a_tar_with_fewer_samples_than_rows_is_counted(self, copy: Folder) -> None:
        packed = self.pack()
        short = shards.pack([Sample(n, image(n, 8, 1), n % 3) for n in range(2)], "png").data
        part = manifest.encode("ingest", 0, replace(packed, data=short), {"source": ["a"] * 3})
        index = self.reseal(copy, short, part)
        with pytest.raises(CorruptError) as caught:
            reader.check_shard(copy, index, index.shards[0])
        assert str(caught.value) == f"{copy}/shards/000000.tar: 2 samples, sealed with 3"

    def test_an_image_that_is_not_the_rows_is_found(self, copy: Folder) -> None:
        packed = self.pack()
        other = shards.pack([Sample(n, image(n + 3, 8, 1), n % 3) for n in range(3)], "png").data
        part = manifest.encode("ingest", 0, replace(packed, data=other), {"source": ["a"] * 3})
        index = self.reseal(copy, other, part)
        with pytest.raises(CorruptError, match="sample 000000000000 does not match its row in"):
            reader.check_shard(copy, index, index.shards[0])


class TestJournal:
    """Only a shortcut: whatever is wrong with it, records come from the parts then, and are the same."""

    @pytest.fixture
    def begun(self, tmp_path: Path) -> tuple[Folder, list[ShardRecord]]:
        """A dataset of which all shards are done, and a journal of those without rejects."""
        folder = Folder(str(tmp_path / "begun"))
        writer.claim(folder, identity(), SETTINGS)
        records = [commit(folder, identity(), shard) for shard in range(3)]
        journal = Journal(folder, identity())
        for record in records:
            journal.add(record, has_rejects=record.samples < 3 and record.shard == 1)
        journal.flush()
        return folder, records

    def test_it_knows_the_shards_without_rejects(self, begun: tuple[Folder, list[ShardRecord]]) -> None:
        folder, records = begun
        assert Journal(folder, identity()).records == {n: records[n] for n in (0, 2)}

    @pytest.mark.parametrize(
        "damage",
        [
            lambda data: b"",
            lambda data: data[:-9],
            lambda data: b"\xff" + data[1:],
            lambda data: b"[1, 2]",
            lambda data: b"[" * 100_000,
            lambda data: json.dumps(json.loads(data)["records"]).encode(),  # as an earlier version wrote it
            lambda data: data.replace(b'"samples":3', b'"samples":2', 1),
            lambda data: data.replace(b'"sha256":"', b'"sha256":"0', 1),
        ],
    )
    def test_a_damaged_one_is_not_used(
        self, damage: Callable[[bytes], bytes], begun: tuple[Folder, list[ShardRecord]]
    ) -> None:
        folder, records = begun
        data = damage(folder.read("journal/000000.json"))
        assert data != folder.read("journal/000000.json")
        folder.write("journal/000000.json", data)
        journal = Journal(folder, identity())
        assert journal.records == {}
        found = [record for record, _ in writer.records_of(folder, range(3), journal)]
        assert found == records

    def test_one_of_another_identity_is_not_used(self, begun: tuple[Folder, list[ShardRecord]]) -> None:
        assert Journal(begun[0], identity(seed=1)).records == {}


class TestShardsOfEarlierRuns:
    """A part that no journal vouches for is read, and must be of this dataset; so must the first image be."""

    @pytest.mark.parametrize(
        ("change", "error"),
        [
            ({"image_size": 9}, r"shards/000001\.tar: sample 000000000004 does not match its row in the manifest"),
            ({"producer": "generate"}, r"manifest/000001\.parquet: its columns are key, .+, not those of generate"),
            ({"count": 5}, r"manifest/000001\.parquet: its rows are not the indices 3 to 4"),
        ],
    )
    def test_a_part_of_another_dataset_is_refused(self, change: dict[str, Any], error: str, tmp_path: Path) -> None:
        folder, other = Folder(str(tmp_path / "one")), Folder(str(tmp_path / "other"))
        for place, settled in ((folder, identity()), (other, identity(image_size=9))):
            commit(place, settled, 1)
        if "image_size" in change:
            folder.write("manifest/000001.parquet", other.read("manifest/000001.parquet"))
        journal = Journal(folder, identity(**({} if "image_size" in change else change)))
        with pytest.raises(CorruptError, match=error) as caught:
            list(writer.records_of(folder, [1], journal))
        assert str(caught.value).endswith(
            "; delete manifest/000001.parquet and start the same command again, which makes the shard again"
        )

    @pytest.mark.parametrize("column", ["key", "shard"])
    def test_rows_that_call_themselves_others_are_refused(self, column: str, tmp_path: Path) -> None:
        folder = Folder(str(tmp_path))
        commit(folder, identity(), 0)
        part, _ = reader.read_part(folder, 0)
        values = {"key": ["x"] * 3, "shard": [1] * 3}[column]
        place, kind = part.table.schema.get_field_index(column), part.table.schema.field(column)
        table = part.table.set_column(place, kind, pa.array(values, kind.type))
        with pytest.raises(CorruptError, match=f"^here: its column {column} is not that of its indices$"):
            reader.check_rows(identity(), replace(part, table=table), 0, "here")

    @pytest.mark.parametrize("shard", [0, 1])
    def test_a_byte_that_changed_in_an_image_of_the_preview_is_found_before_the_seal(
        self, shard: int, tmp_path: Path
    ) -> None:
        folder = Folder(str(tmp_path))
        writer.claim(folder, identity(), SETTINGS)
        for n in range(3):
            commit(folder, identity(), n)
        tar = bytearray(folder.read(f"shards/{shard:06d}.tar"))
        tar[shards.BLOCK + 60] ^= 1  # in its first image
        folder.write(f"shards/{shard:06d}.tar", bytes(tar))
        with pytest.raises(CorruptError) as caught:
            finish(folder, identity())
        assert str(caught.value).startswith(f"{folder}/shards/{shard:06d}.tar: sample 00000000000")
        assert str(caught.value).endswith(
            f"; delete manifest/{shard:06d}.parquet and start the same command again, which makes the shard again"
        )
        folder.delete(f"manifest/{shard:06d}.parquet")
        finish(folder, identity())
        assert verify(folder) == 6


def test_a_claim_without_settings_is_no_claim(copy: Folder) -> None:
    claimed = json.loads(copy.read("dataset.json"))
    for lacking in ("settings", "identity"):
        copy.write("dataset.json", claim.canonical({name: claimed[name] for name in claimed if name != lacking}))
        with pytest.raises(CorruptError, match=rf"^{copy}/dataset\.json: damaged, not a claim: it has no {lacking}$"):
            reader.open_sealed(copy)
        with pytest.raises(DatasetError, match=rf"dataset\.json: damaged, not a claim: it has no {lacking}; use"):
            writer.claim(copy, identity(), SETTINGS)


def test_a_damaged_claim_is_not_printed(tmp_path: Path) -> None:
    folder = Folder(str(tmp_path))
    folder.write("dataset.json", b"\xff" * 5000)
    with pytest.raises(DatasetError) as caught:
        writer.claim(folder, identity(), SETTINGS)
    assert len(str(caught.value)) < 300
