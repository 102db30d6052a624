"""Proof of the property tests: bugs are put into a copy of the tree, one at a time, and a property must not hold then.

The first is the one that was there: rows of several Parquet files were read from the last one (issue 16, A1). Some ten
seconds each.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent
PROPERTIES = [
    "tests/pipelines/sources/test_source_properties.py",
    "tests/pipelines/dataset/test_dataset_properties.py",
    "tests/pipelines/dataset/test_dataset_laws.py",
]


class Bug(NamedTuple):
    what: str
    file: str
    old: str  # stands there once
    new: str


BUGS = [
    # Parquet
    Bug(
        "rows of several files are read from the last one",
        "pipelines/sources/parquet.py",
        "if column is None or item.place != place or not first <=",
        "if column is None or not first <=",
    ),
    Bug(
        "a row group's rows are one off",
        "pipelines/sources/parquet.py",
        "column[item.offset - first].as_py()",
        "column[item.offset - first - 1].as_py()",
    ),
    Bug(
        "a row group's first row is looked for in the one before",
        "pipelines/sources/parquet.py",
        "if row < first + rows:",
        "if row <= first + rows:",
    ),
    Bug(
        "row numbers begin anew with each row group",
        "pipelines/sources/parquet.py",
        "rows = file.metadata.row_group(group).num_rows\n                labels",
        "rows, row = file.metadata.row_group(group).num_rows, 0\n                labels",
    ),
    Bug(
        "labels are those of a file's first row group",
        "pipelines/sources/parquet.py",
        "self._column(file, name, group, self._label)",
        "self._column(file, name, 0 * group, self._label)",
    ),
    Bug(
        "class 0 is no class",
        "pipelines/sources/parquet.py",
        'None if value in (None, "") else str(value)',
        "str(value) if value else None",
    ),
    Bug(
        "a file stays open where another is asked for",
        "pipelines/sources/parquet.py",
        "if name != self._open_name:",
        "if not self._open_name:",
    ),
    # Folders, zips, lists
    Bug(
        "the outermost folder is the class",
        "pipelines/sources/base.py",
        "return PurePosixPath(name).parent.name or None",
        'return PurePosixPath(name).parts[0] if "/" in name else None',
    ),
    Bug(
        "upper-case endings are no images",
        "pipelines/sources/base.py",
        "return name.lower().endswith(IMAGE_ENDINGS)",
        "return name.endswith(IMAGE_ENDINGS)",
    ),
    Bug(
        "the last file of several is left out",
        "pipelines/sources/base.py",
        "return sorted(names)\n",
        "return sorted(names)[:-1] or [*names]\n",
    ),
    Bug(
        "-1 is the last class",
        "pipelines/sources/base.py",
        "if label == -1:\n        return None",
        "if label == -1:\n        return classes[-1]",
    ),
    Bug(
        "results of requests come as they please",
        "pipelines/sources/base.py",
        "running.pop(0).result()",
        "running.pop().result()",
    ),
    Bug(
        "a path of a list loses a letter",
        "pipelines/sources/lists.py",
        "full[len(base) + 1 :]",
        "full[len(base) + 2 :]",
    ),
    Bug(
        "LIST.CSV is read as JSON lines",
        "pipelines/sources/lists.py",
        'self._name.lower().endswith(".csv")',
        'self._name.endswith(".csv")',
    ),
    Bug(
        "a zip's images come without their last byte",
        "pipelines/sources/zips.py",
        "yield data if len(data) == item.size else",
        "yield data[:-1] if len(data) == item.size else",
    ),
    # IDX
    Bug(
        "an array's images are one off",
        "pipelines/sources/idx.py",
        "self.images[int(item.place)]",
        "self.images[int(item.place) - 1]",
    ),
    Bug(
        "an array's labels are one off",
        "pipelines/sources/idx.py",
        "self.classes[label])",
        "self.classes[label - 1])",
    ),
    # Tars
    Bug(
        "a member's padding is forgotten",
        "pipelines/sources/tar_members.py",
        "offset + size + -size % tarfile.BLOCKSIZE",
        "offset + size",
    ),
    Bug(
        "a long name is kept for the next member",
        "pipelines/sources/tar_members.py",
        'yield name.removeprefix("./"), offset, size\n            last, long_name, long_size = name, "", -1',
        'yield name.removeprefix("./"), offset, size\n            last, long_size = name, -1',
    ),
    Bug(
        "GNU's long names are cut",
        "pipelines/sources/tar_members.py",
        'long_name = data.rstrip(b"\\0").decode("utf-8", "surrogateescape")',
        'long_name = data.rstrip(b"\\0").decode("utf-8", "surrogateescape")[:100]',
    ),
    Bug(
        "PAX names are not read",
        "pipelines/sources/tar_members.py",
        'found.get(b"path", b"")',
        'found.get(b"name", b"")',
    ),
    Bug(
        "a tar ends at its first zero block, whatever follows",
        "pipelines/sources/tar_members.py",
        "            _check_end(file, start, where, last)\n",
        "",
    ),
    Bug(
        "a packed tar is read on from where it was left",
        "pipelines/sources/tars.py",
        "            self._unpacked.seek(item.offset)\n",
        "            self._unpacked.seek(max(item.offset, self._unpacked.tell()))\n",
    ),
    Bug(
        "a sample without a label takes the one before it",
        "pipelines/sources/webdataset_tars.py",
        "last, sample = key, {}",
        'last, sample = key, {e: at for e, at in sample.items() if e == "cls"}',
    ),
    Bug(
        "the last sample of a tar is lost",
        "pipelines/sources/webdataset_tars.py",
        "            items += self._images(file, tar, last, sample, tally)\n        return",
        "        return",
    ),
    Bug(
        "of a sample's images one is taken",
        "pipelines/sources/webdataset_tars.py",
        "in tally.over(images):",
        "in tally.over(images[:1]):",
    ),
    Bug(
        "upper-case labels are none",
        "pipelines/sources/webdataset_tars.py",
        "found = [ending for ending in sample if ending.lower() == self._label_ending]",
        "found = [ending for ending in sample if ending == self._label_ending]",
    ),
    Bug(
        "a run of pieces goes on in another file",
        "pipelines/sources/tar_members.py",
        "near = item.place == before.place and 0 <= gap <= 64 << 10",
        "near = 0 <= gap <= 64 << 10",
    ),
    Bug(
        "a run of pieces goes back",
        "pipelines/sources/tar_members.py",
        "near = item.place == before.place and 0 <= gap <= 64 << 10",
        "near = item.place == before.place and gap <= 64 << 10",
    ),
    Bug(
        "pieces after a gap are shifted",
        "pipelines/sources/tar_members.py",
        "return [data[item.offset - start : item.offset - start + item.size] for item in run]",
        "return [data[(at := sum(i.size for i in run[:n])) : at + item.size] for n, item in enumerate(run)]",
    ),
    # Sealed datasets
    Bug(
        "a dataset's images are not compared with their hashes",
        "pipelines/sources/ganmill_dataset.py",
        "if hashlib.sha256(content).digest() != self._sha256(item):",
        "if not content:",
    ),
    Bug(
        "the hashes are those of the first shard",
        "pipelines/sources/ganmill_dataset.py",
        "if item.place != self._place:",
        "if not self._place:",
    ),
    # Catalogue
    Bug(
        "the holdout keeps its images in the other part too",
        "pipelines/ingest/catalogue.py",
        "kept = _catalogue(table, order_N[~held_N], classes)",
        "kept = _catalogue(table, order_N, classes)",
    ),
    Bug(
        "the holdout is dealt by place and not by name",
        "pipelines/ingest/catalogue.py",
        "held_N = name_N[order_N] < int",
        "held_N = name_N < int",
    ),
    Bug(
        "the catalogue's files are cut between shards",
        "pipelines/ingest/catalogue.py",
        "step = _shards_a_file(shard_size) * shard_size",
        "step = ROWS_A_FILE",
    ),
    Bug(
        "classes count from 1",
        "pipelines/ingest/catalogue.py",
        "enumerate(self.classes or [])}",
        "enumerate(self.classes or [], 1)}",
    ),
    Bug(
        "the first file of the catalogue is kept",
        "pipelines/ingest/catalogue.py",
        "if number != self._number:",
        "if self._number < 0:",
    ),
    Bug(
        "the digest does not know labels",
        "pipelines/ingest/catalogue.py",
        "{size}\\0{label}\\0",
        "{size}\\0",
    ),
    Bug(
        "two items of one name are taken",
        "pipelines/ingest/catalogue.py",
        "        if first == second:\n",
        "        if first is second:\n",
    ),
    Bug(
        "blocks are torn apart",
        "pipelines/ingest/catalogue.py",
        "_hashes((block or name for name, block in",
        "_hashes((name for name, block in",
    ),
    # Ingest
    Bug(
        "contents come in another order than labels",
        "jobs/ingestion/worker.py",
        "self.source.read(items), strict=True",
        "self.source.read(sorted(items)), strict=True",
    ),
    Bug(
        "names are swapped",
        "jobs/ingestion/worker.py",
        '{"source": names}',
        '{"source": names[::-1]}',
    ),
    Bug(
        "no label is class 0",
        "jobs/ingestion/worker.py",
        "samples.append(Sample(index, images.encode(image), label))",
        "samples.append(Sample(index, images.encode(image), label or 0))",
    ),
    Bug(
        "images without a label are taken",
        "pipelines/ingest/preparation.py",
        "if identity.classes and label is None:",
        'if identity.classes and label == "":',
    ),
    Bug(
        "rejects have the shard's number",
        "jobs/ingestion/worker.py",
        "rejects.append(Reject(index, name, str(image)))",
        "rejects.append(Reject(shard, name, str(image)))",
    ),
    # Shards and parts
    Bug("offsets are of the header", "pipelines/dataset/shards.py", "append(len(tar) + BLOCK)", "append(len(tar))"),
    Bug(
        "a full block is padded with one more",
        "pipelines/dataset/shards.py",
        "tar += bytes(-len(data) % BLOCK)",
        "tar += bytes(BLOCK - len(data) % BLOCK)",
    ),
    Bug(
        "read back, no label is class 0",
        "pipelines/dataset/shards.py",
        "None if label is None else int(label))",
        "int(label or 0))",
    ),
    Bug(
        "read back, padding is forgotten", "pipelines/dataset/shards.py", "BLOCK + size + -size % BLOCK", "BLOCK + size"
    ),
    Bug("samples may come in any order", "pipelines/dataset/shards.py", "if index <= last:", "if index < 0:"),
    Bug(
        "junk behind a shard's end is passed over",
        "pipelines/dataset/shards.py",
        'if data[start:].strip(b"\\0"):',
        'if data[start : start + BLOCK].strip(b"\\0"):',
    ),
    Bug(
        "in the part no label is class 0",
        "pipelines/dataset/manifest.py",
        '"label": packed.label,',
        '"label": [label or 0 for label in packed.label],',
    ),
    Bug(
        "the last reject of a part is lost",
        "pipelines/dataset/manifest.py",
        "for reject in rejects],\n    }",
        "for reject in rejects[:-1]],\n    }",
    ),
    # The dataset's laws
    Bug(
        "the part is written before its tar",
        "pipelines/dataset/writer.py",
        "    folder.write(manifest.tar_name(shard), packed.data)\n    folder.write(manifest.part_name(shard), data)\n",
        "    folder.write(manifest.part_name(shard), data)\n    folder.write(manifest.tar_name(shard), packed.data)\n",
    ),
    Bug(
        "extending keeps the short part",
        "pipelines/dataset/writer.py",
        "if first.before % identity.shard_size:",
        "if first.before < identity.shard_size:",
    ),
    Bug("extending keeps the seal", "pipelines/dataset/writer.py", "    folder.delete(SEAL)\n", ""),
    Bug(
        "a smaller count extends too",
        "pipelines/dataset/writer.py",
        "or first.now <= first.before):",
        "or not first.now):",
    ),
    Bug(
        "a seal does not look at sizes",
        "pipelines/dataset/writer.py",
        "if wrong or sorted(records)",
        "if sorted(records)",
    ),
    Bug(
        "a seal does not look for all shards",
        "pipelines/dataset/writer.py",
        "if wrong or sorted(records) != list(range(num_shards(identity))):",
        "if wrong:",
    ),
    Bug(
        "crashed writers' files stay",
        "pipelines/dataset/writer.py",
        "        folder.sweep(name)\n    folder.abort_uploads",
        "        assert name is not None\n    folder.abort_uploads",
    ),
    Bug(
        "the last shard is never missing",
        "pipelines/dataset/writer.py",
        "return [shard for shard in range(shards) if",
        "return [shard for shard in range(max(1, shards - 1)) if",
    ),
    Bug(
        "a journal is believed whatever is there",
        "pipelines/dataset/writer.py",
        'if record is not None and sizes.get(f"{number:06d}.parquet") == record.part_bytes:',
        "if record is not None:",
    ),
    Bug(
        "a file is published while it is written",
        "pipelines/storage/local.py",
        "    temporary = _write_temporary(target, data)\n    try:\n        os.replace(temporary, target)",
        "    target.parent.mkdir(parents=True, exist_ok=True)\n    temporary = target\n"
        "    try:\n        target.write_bytes(data)",
    ),
    Bug(
        "a claim takes another's place",
        "pipelines/storage/local.py",
        "os.link(temporary, target)",
        "os.replace(temporary, target)",
    ),
    # Verify
    Bug(
        "hashes are not compared",
        "pipelines/dataset/reader.py",
        "if hashlib.sha256(data).hexdigest() != sha256:",
        "if not sha256:",
    ),
    Bug("strangers are passed over", "pipelines/dataset/reader.py", "    if unsealed:\n", "    if unsealed == []:\n"),
    Bug(
        "files beside the shards are not looked at",
        "pipelines/dataset/reader.py",
        "        _checked(folder, name, None, sha256)\n",
        "        assert sha256\n",
    ),
    Bug(
        "a part's labels are not compared",
        "pipelines/dataset/reader.py",
        '            or sample.label != row["label"]\n',
        "",
    ),
    Bug(
        "a part's keys are not compared",
        "pipelines/dataset/reader.py",
        '{"key": [shards.key(index) for index in kept], "shard": [shard] * len(kept)}',
        '{"shard": [shard] * len(kept)}',
    ),
    Bug(
        "a part's shards are not compared",
        "pipelines/dataset/reader.py",
        '{"key": [shards.key(index) for index in kept], "shard": [shard] * len(kept)}',
        '{"key": [shards.key(index) for index in kept]}',
    ),
    Bug(
        "a part's places are not compared", "pipelines/dataset/reader.py", "            or image != sample.image\n", ""
    ),
    Bug(
        "a part's hashes are not compared",
        "pipelines/dataset/reader.py",
        '            or hashlib.sha256(image).digest() != row["sha256"]\n',
        "",
    ),
    Bug(
        "samples of other shards are taken",
        "pipelines/dataset/reader.py",
        "if sample.index not in owned:",
        "if sample.index < 0:",
    ),
    Bug(
        "classes beyond the last are taken",
        "pipelines/dataset/reader.py",
        "(sample.label or 0) >= len(classes)",
        "(sample.label or 0) > len(classes)",
    ),
    Bug(
        "images of another size are taken",
        "pipelines/dataset/reader.py",
        "if dimensions(sample.image) != (height, width):",
        "if dimensions(sample.image) is None:",
    ),
    Bug(
        "fewer samples are taken",
        "pipelines/dataset/reader.py",
        "if found != record.samples:",
        "if found > record.samples:",
    ),
    # Selections
    Bug(
        "weights are not counted",
        "pipelines/dataset/reader.py",
        "in range(int(copies_S[sample.index - owned.start])):",
        "in range(min(1, int(copies_S[sample.index - owned.start]))):",
    ),
    Bug(
        "a selection's first index of a shard is the shard's before",
        "pipelines/dataset/selection.py",
        "np.searchsorted(index_N, bounds)",
        'np.searchsorted(index_N, bounds, "right")',
    ),
    Bug(
        "a selection of another dataset is taken",
        "pipelines/dataset/selection.py",
        "if selection.facts.dataset != index.root:",
        "if not selection.facts.dataset:",
    ),
    Bug(
        "a selection may name one more than there are",
        "pipelines/dataset/selection.py",
        "if selection.index_N[-1] >= index.identity.count:",
        "if selection.index_N[-1] > index.identity.count:",
    ),
    Bug(
        "weights are not read",
        "pipelines/dataset/selection.py",
        "index_N if np.all(weight_N == 1) else np.repeat(index_N, weight_N.astype(np.int64))",
        "index_N",
    ),
    # Batches
    Bug(
        "the world is ignored",
        "pipelines/loading/loader.py",
        "order.share(plan, rank, world)",
        "order.share(plan, 0, 1)",
    ),
    Bug("every share begins at 0", "pipelines/loading/loader.py", "share.start * plan.stream_batch,\n", "0,\n"),
    Bug(
        "a resumed epoch begins anew",
        "pipelines/loading/loader.py",
        "first * plan.stream_batch) for stream",
        "0) for stream",
    ),
    Bug("a resumed window begins anew", "pipelines/loading/loader.py", "permutation[skip:]", "permutation"),
    Bug(
        "a resumed shard begins anew",
        "pipelines/loading/loader.py",
        "span.start + start, span.stop",
        "span.start, span.stop",
    ),
    Bug(
        "the first epoch comes again and again",
        "pipelines/loading/loader.py",
        "epoch, first = epoch + 1, 0",
        "epoch, first = epoch, 0",
    ),
    Bug(
        "labels of a batch are those of its mirror image",
        "pipelines/loading/loader.py",
        "np.array([sample.label or 0 for sample in taken], np.int64)",
        "np.array([sample.label or 0 for sample in taken[::-1]], np.int64)",
    ),
    Bug(
        "a position is one off",
        "pipelines/loading/loader.py",
        "if position < record.samples:",
        "if position <= record.samples:",
    ),
    Bug(
        "in order, no label is class 0",
        "pipelines/loading/loader.py",
        "-1 if sample.label is None",
        "0 if sample.label is None",
    ),
    Bug(
        "streams overlap",
        "pipelines/loading/order.py",
        "(stream + 1) * plan.stream_length\n",
        "(stream + 1) * plan.stream_length + 1\n",
    ),
    Bug(
        "windows are not shuffled",
        "pipelines/loading/order.py",
        "window]).permutation(length)",
        "window]).permutation(1) if length < 1 else np.arange(length)",
    ),
    Bug(
        "all streams are shuffled alike",
        "pipelines/loading/order.py",
        "[plan.seed, epoch, stream, window]",
        "[plan.seed, epoch, window]",
    ),
    Bug(
        "the last rank's share is cut",
        "pipelines/loading/order.py",
        "range(rank * plan.streams // world, (rank + 1) * plan.streams // world)",
        "range(rank * (plan.streams // world), (rank + 1) * (plan.streams // world))",
    ),
    # Duplicates
    Bug(
        "a bit less is near", "pipelines/ingest/duplicates.py", ".bit_count() <= NEAR_BITS", ".bit_count() < NEAR_BITS"
    ),
    Bug(
        "a band is not looked at",
        "pipelines/ingest/duplicates.py",
        "for band in range(_BANDS)]",
        "for band in range(_BANDS - 1)]",
    ),
    Bug(
        "the last of several is kept",
        "pipelines/ingest/duplicates.py",
        "for o in sorted(near) if",
        "for o in sorted(near, reverse=True) if",
    ),
    # Range reads
    Bug(
        "a file ends a byte early",
        "pipelines/storage/object_store.py",
        "io.SEEK_END: self._size}",
        "io.SEEK_END: self._size - 1}",
    ),
    Bug(
        "a short range is taken",
        "pipelines/storage/folder.py",
        "        if len(data) != size:\n            raise StorageError(",
        "        if len(data) > size:\n            raise StorageError(",
    ),
]


def put_in(bug: Bug, tree: Path) -> None:
    """A copy of the tree with the bug in it."""
    for name in ("pipelines", "jobs", "dcgan", "tests"):
        shutil.copytree(ROOT / name, tree / name, ignore=shutil.ignore_patterns("__pycache__", "node_modules"))
    shutil.copy(ROOT / "pyproject.toml", tree)
    file = tree / bug.file
    text = file.read_text()
    assert text.count(bug.old) == 1, f"{bug.file}: {bug.old!r} stands there {text.count(bug.old)} times"
    file.write_text(text.replace(bug.old, bug.new))


def run(tree: Path, profile: str, *tests: str) -> subprocess.CompletedProcess[str]:
    options = ["-x", "-q", "-p", "no:cacheprovider", "-n", "0", "--timeout=3600", f"--hypothesis-profile={profile}"]
    return subprocess.run(
        [sys.executable, "-m", "pytest", *options, *tests],
        cwd=tree,
        env={**os.environ, "PYTHONPATH": str(tree)},
        capture_output=True,
        text=True,
        check=False,
    )


def test_each_bug_stands_in_the_tree_once() -> None:
    """So that a change of the code does not take a proof away unseen."""
    assert [bug for bug in BUGS if (ROOT / bug.file).read_text().count(bug.old) != 1] == []


@pytest.mark.long
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("tests", PROPERTIES)
def test_the_properties_hold_for_twenty_times_as_many_examples_too(tests: str) -> None:
    done = run(ROOT, "long", tests)
    assert done.returncode == 0, done.stdout


@pytest.mark.long
@pytest.mark.timeout(900)
@pytest.mark.parametrize("bug", BUGS, ids=lambda bug: bug.what)
def test_a_bug_that_is_put_in_is_found(bug: Bug, tmp_path: Path) -> None:
    put_in(bug, tmp_path)
    of_sources = bug.file.startswith(("pipelines/sources/", "pipelines/ingest/", "jobs/"))
    done = run(tmp_path, "first", *(PROPERTIES if of_sources else reversed(PROPERTIES)))  # who shall find it first
    assert "error" not in done.stdout.splitlines()[-1], (
        done.stdout
    )  # a test failed; what cannot be imported is no proof
    assert done.returncode == 1, done.stdout
