"""The laws of a dataset as a model: whatever happens to it in whatever order, a few lines say what it must be.

A job claims, commits, extends and seals as jobs/cluster/shard_job.py does. It may be killed at any call to the file
system: an audit hook of Python's counts the calls below the dataset's folder and lets none through from the n-th on, so
that not even a `finally` can tidy up. Between jobs files are deleted, shards committed again by a worker that is late,
selections made and datasets ingested again.
"""

import os
import re
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from pipelines.dataset import card, layout, reader, selection, writer
from pipelines.dataset.identity import from_json
from pipelines.dataset.journal import Journal
from pipelines.dataset.manifest import part_name, tar_name
from pipelines.dataset.schema import SchemaError
from pipelines.dataset.selection import Facts
from pipelines.errors import CorruptError, DatasetError
from pipelines.sources.base import Choice
from pipelines.sources.registry import open_source
from pipelines.storage.folder import Folder, MissingError
from tests.pipelines.sources.pictures import SealedPile, commit, examples, png, scratch

GONE = {3, 4, 10}  # indices that were rejected
SHARD_SIZE = 3
CLASSES = ["cat", "dog", "ant"]
NO_CLASS = {"label": None, "taken": 0, "of": 0}
WRITING = ("os.rename", "os.link", "os.remove", "os.mkdir", "os.rmdir")  # and open


class Killed(BaseException):
    """As far as the file system can see, the process has ended."""


class _Death:
    """Counts the calls that may change a folder: `left` of them are let through, and none after them.

    With `opens` only the opening of files is counted, and the first that is not let through comes as far as to make the
    file, or to empty an older one.
    """

    def __init__(self) -> None:
        self.folder, self.left = "", 0
        self.opens = self.hooked = False

    def __call__(self, event: str, arguments: tuple[Any, ...]) -> None:
        opens = event == "open" and bool(arguments[2] & (os.O_WRONLY | os.O_RDWR))
        writes = opens or (event in WRITING and not self.opens)
        if self.folder and writes and str(arguments[0]).startswith(self.folder):
            self.left -= 1
            if self.left < 0:
                if self.opens and self.left == -1:
                    self.folder, folder = "", self.folder
                    Path(arguments[0]).write_bytes(b"")
                    self.folder = folder
                raise Killed


_death = _Death()


@contextmanager
def killed_after(folder: str, calls: int, opens: bool) -> Iterator[None]:
    """Run a block until it has changed what lies below `folder` so many times; then go on behind it."""
    if not _death.hooked:
        sys.addaudithook(_death)  # for good: Python cannot take one off
        _death.hooked = True
    _death.folder, _death.left, _death.opens = folder, calls, opens
    try:
        yield
    except Killed:
        pass
    finally:
        _death.folder = ""


def pile(count: int) -> SealedPile:
    return SealedPile(count, GONE, SHARD_SIZE, CLASSES)


def shards_of(count: int) -> range:
    return range(layout.num_shards(pile(count).identity))


def work(folder: Folder, count: int) -> None:
    """A job: claim, do what is missing, seal. What jobs/cluster/shard_job.py does, without its cluster."""
    settled = pile(count).identity
    writer.claim(folder, settled, {})
    missing = writer.missing(folder, len(shards_of(count)))
    if not missing and layout.SEAL in folder.list():
        Journal(folder, settled).delete()
        return
    journal = Journal(folder, settled)
    records = {}
    for shard in missing:
        records[shard] = commit(folder, pile(count), shard)
        journal.add(records[shard], bool(GONE.intersection(layout.shard_range(settled, shard))))
        journal.flush()
    for record, _ in writer.records_of(folder, sorted({*shards_of(count)} - {*missing}), journal):
        records[record.shard] = record
    writer.seal(folder, settled, records, card.files(folder, settled, records))
    journal.delete()


def content(folder: Folder) -> dict[str, bytes]:
    """Every file by its name, the hidden ones of crashed writers too."""
    paths = [path for path in Path(folder.url).rglob("*") if path.is_file()]
    return {str(path.relative_to(folder.url)): path.read_bytes() for path in paths}


@cache
def undisturbed(count: int) -> dict[str, bytes]:
    """The dataset of a job that nothing happened to."""
    with scratch() as root:
        work(Folder(f"{root}/d"), count)
        return content(Folder(f"{root}/d"))


class Laws(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.scratch = ExitStack()
        self.folder = Folder(f"{self.scratch.enter_context(scratch())}/d")
        self.count: int | None = None  # what the claim says
        self.tried: set[int] = set()  # counts that any job was to make
        self.lost: set[int] = set()  # shards whose part is there, and their tar is not, or both are an older job's
        self.selection: dict[int, int] = {}
        self.selected_of = ""

    def teardown(self) -> None:
        self.scratch.close()

    def parts(self) -> set[int]:
        return {int(name.partition(".")[0]) for name in self.folder.list("manifest")}

    def right(self, shard: int) -> bool:
        files, names = content(self.folder), (tar_name(shard), part_name(shard))
        return all(files.get(name) == undisturbed(self.count or 0).get(name) for name in names)

    def whole(self) -> bool:
        return layout.SEAL in self.folder.list() and not self.lost and self.parts() == {*shards_of(self.count or 0)}

    @rule(more=st.integers(0, 4))
    def a_job_comes_through(self, more: int) -> None:
        """Laws 1, 3 and 5: it leaves the bytes of one that nothing happened to. Of lost tars its message tells."""
        before, count = self.count, (self.count or 1) + more
        self.count = count
        self.tried.add(count)
        if before == count and layout.SEAL in self.folder.list() and self.parts() == {*shards_of(count)}:
            work(self.folder, count)  # nothing to do: it looks at the seal and the parts
            return
        for _ in range(len(self.lost) + 1):
            try:
                work(self.folder, count)
                break
            except (CorruptError, MissingError) as error:  # as its message says: delete the part, start again
                found = {int(name) for name in re.findall(r"/(\d{6})\.(?:tar|parquet)", str(error))} & self.lost
            for shard in found:
                self.folder.delete(part_name(shard))
        self.lost.clear()
        assert content(self.folder) == undisturbed(count)

    @rule(more=st.integers(0, 4), calls=st.integers(0, 50), opens=st.booleans())
    def a_job_is_killed(self, more: int, calls: int, opens: bool) -> None:
        count = (self.count or 1) + more
        self.tried.add(count)
        with killed_after(self.folder.url, calls, opens), suppress(CorruptError, MissingError):
            work(self.folder, count)
        claimed = self.folder.exists(layout.CLAIM) and reader.read_claim(self.folder).identity.count
        assert claimed in (self.count or 0, count)
        self.count = claimed or None
        self.lost = {shard for shard in self.lost & self.parts() if not self.right(shard)}

    @precondition(lambda self: self.parts())
    @rule(data=st.data())
    def a_part_is_deleted(self, data: st.DataObject) -> None:
        shard = data.draw(st.sampled_from(sorted(self.parts())))
        self.folder.delete(part_name(shard))
        self.lost.discard(shard)

    @precondition(lambda self: self.parts() - self.lost)
    @rule(data=st.data())
    def a_tar_is_deleted(self, data: st.DataObject) -> None:
        shard = data.draw(st.sampled_from(sorted(self.parts() - self.lost)))
        self.folder.delete(tar_name(shard))
        self.lost.add(shard)

    @precondition(lambda self: self.count)
    @rule(data=st.data())
    def a_late_worker_commits_again(self, data: st.DataObject) -> None:
        """Law 6: two starts at once only waste work."""
        assert self.count is not None
        shard = data.draw(st.sampled_from(shards_of(self.count)))
        commit(self.folder, pile(self.count), shard)
        self.lost.discard(shard)

    @precondition(lambda self: self.count)
    @rule(data=st.data())
    def a_late_worker_of_an_older_job_commits(self, data: st.DataObject) -> None:
        """Of a job that was extended since: its last shard may be shorter than it is now."""
        assert self.count is not None
        older = data.draw(st.sampled_from(sorted(count for count in self.tried if count <= self.count)))
        shard = shards_of(older)[-1]
        commit(self.folder, pile(older), shard)
        self.lost = (self.lost - {shard}) | ({shard} if not self.right(shard) else set())

    @precondition(lambda self: self.count)
    @rule(
        change=st.sampled_from(({"shard_size": 4}, {"classes": ["cat", "dog"]}, {"count": 0}, {"image_size": 9})),
        more=st.integers(0, 3),
    )
    def another_job_is_refused(self, change: dict[str, Any], more: int) -> None:
        """Law 4: with the field's name, and nothing is changed."""
        assert self.count is not None
        before = content(self.folder)
        wrong = {**pile(self.count + more).fields, **change}
        if "count" in change:
            wrong = pile(self.count).fields | {"count": self.count - 1}
        if wrong["count"] == 0:  # an identity of nothing is none, whatever lies in the folder
            with pytest.raises(SchemaError, match=r"^count is 0: "):
                from_json(wrong)
            return
        with pytest.raises(DatasetError, match=rf"claimed with (count|{next(iter(change))}) = "):
            writer.claim(self.folder, from_json(wrong), {})
        assert content(self.folder) == before

    @precondition(whole)
    @rule(data=st.data())
    def some_are_selected(self, data: st.DataObject) -> None:
        assert self.count is not None
        self.selection = data.draw(
            st.dictionaries(st.sampled_from(pile(self.count).there), st.integers(1, 3), min_size=1)
        )
        self.selected_of = reader.open_sealed(self.folder).root
        facts = Facts(dataset=self.selected_of, rule="r", parameters={}, images=1, classes=[NO_CLASS])
        chosen = sorted(self.selection)
        encoded = selection.encode(facts, np.array(chosen, np.int64), np.array([self.selection[n] for n in chosen]))
        Folder(f"{self.folder}-selection").write("s.parquet", encoded)

    @precondition(lambda self: self.selection and self.whole())
    @rule()
    def the_selection_is_opened(self) -> None:
        url = f"{self.folder}-selection/s.parquet"
        if reader.open_sealed(self.folder).root != self.selected_of:
            with pytest.raises(DatasetError, match="made of the dataset with root"):
                selection.open_through(self.folder, url)
            return
        index = selection.open_through(self.folder, url)
        found = [s.index for record in index.shards for s in reader.samples(self.folder, index, record)]
        assert found == [n for n in sorted(self.selection) for _ in range(self.selection[n])]

    @precondition(whole)
    @rule()
    def it_is_ingested_again(self) -> None:
        assert self.count is not None
        source = open_source(self.folder.url, "dataset", Choice())
        items = [*source.items()]
        its = pile(self.count)
        assert [(int(item.name), item.label) for item in items] == [(n, CLASSES[its.label(n) or 0]) for n in its.there]
        assert [*source.read(items[::-1])] == [png(n) for n in its.there[::-1]]

    @invariant()
    def nothing_half_written_is_visible(self) -> None:
        """Law 2: each file is whole and of one of the jobs; the claim and the parts are of the claimed one's."""
        for name, data in content(self.folder).items():
            if name.startswith("journal/") or name.rpartition("/")[2].startswith("."):
                continue
            now = name.startswith("manifest/") or name in (layout.CLAIM, layout.SEAL)
            stale = name in map(part_name, self.lost)
            counts = {self.count or 0} if now and not stale else self.tried
            assert any(undisturbed(count).get(name) == data for count in counts), name
        for shard in self.parts() - self.lost:
            assert self.folder.read(tar_name(shard)) == undisturbed(self.count or 0)[tar_name(shard)]

    @invariant()
    def a_seal_says_that_all_is_there(self) -> None:
        if layout.SEAL not in self.folder.list():
            with pytest.raises(DatasetError):
                reader.open_sealed(self.folder)
            return
        index = reader.open_sealed(self.folder)
        its = pile(self.count or 0)
        if not self.whole():
            with pytest.raises(CorruptError):
                self.verify(index)
            return
        assert self.verify(index) == len(its.there)
        found = [s for record in index.shards for s in reader.samples(self.folder, index, record)]
        assert [(s.index, s.image, s.label) for s in found] == [(n, png(n), its.label(n)) for n in its.there]

    def verify(self, index: layout.Index) -> int:
        reader.check_files(self.folder, index)
        return sum(reader.check_shard(self.folder, index, record) for record in index.shards)


TestLaws = Laws.TestCase
TestLaws.settings = settings(examples(1), stateful_step_count=15)
