"""A folder of WebDataset shards, as img2dataset and others write them."""

import json
from collections.abc import Iterator, Sequence
from typing import IO

from pipelines.errors import SourceError
from pipelines.sources.base import Choice, Content, Item, Source, Tally, ahead, is_image, is_junk, of_split
from pipelines.sources.tar_members import members, read_pieces
from pipelines.sources.tars import TAR_ENDINGS
from pipelines.storage.folder import Folder

MAX_LABEL_BYTES = 1 << 20  # of a .cls or .json member


class WebDatasetSource(Source):
    """A folder of tars with samples: members of one name and several endings. The samples of a tar are one block.

    Labels come from the `.cls` members, or from the field `label_column` of the `.json` members.
    """

    def __init__(self, folder: Folder, choice: Choice) -> None:
        super().__init__()
        self._folder, self._choice = folder, choice
        self._label_ending = "json" if choice.label_column else "cls"

    def items(self) -> Iterator[Item]:
        names = []
        for name, _ in self._folder.walk(hidden=True):
            if name.lower().endswith(TAR_ENDINGS) and not is_junk(name):
                names.append(name)
            else:
                self.tally.listed += 1
                self.tally.ignore_file(name)
        if packed := sorted(name for name in names if not name.lower().endswith(".tar")):
            raise SourceError(f"{self._folder}/{packed[0]}: shards must be plain .tar; unpack them first")
        names = of_split(names, self._choice.split, str(self._folder), self.tally)
        # Several tars are listed at once: on a store each takes many requests.
        for found, tally in ahead(self._samples, names, at_once=4):
            self.tally.add(tally)
            yield from found

    def _samples(self, tar: str) -> tuple[list[Item], Tally]:
        """A tar's items, and the count of its other members."""
        where, tally = f"{self._folder}/{tar}", Tally()
        items: list[Item] = []
        with self._folder.open(tar) as file:
            sample: dict[str, tuple[int, int]] = {}
            last, seen = "", set[str]()
            for name, offset, size in members(file, where):
                stem, _, ending = name.rpartition("/")[2].partition(".")
                key = f"{name.rpartition('/')[0]}/{stem}"
                if key != last:
                    items += self._images(file, tar, last, sample, tally)
                    if key in seen:
                        raise SourceError(f"{where}: {name}: its key occurred before: keys must be unique in a shard")
                    seen.add(key)
                    last, sample = key, {}
                if ending in sample:
                    raise SourceError(f"{where}: {name}: occurs twice")
                sample[ending] = (offset, size)
            items += self._images(file, tar, last, sample, tally)
        return items, tally

    def _images(
        self, file: IO[bytes], tar: str, key: str, sample: dict[str, tuple[int, int]], tally: Tally
    ) -> Iterator[Item]:
        if not sample:
            return
        stem = key.lstrip("/")
        label = self._label(file, f"{self._folder}/{tar}: {stem}", sample)
        images = [ending for ending in sample if is_image(f"x.{ending}")]
        for ending in tally.over(images):
            yield Item(f"{tar}/{stem}.{ending}", tar, *sample[ending], label, tar)
        for ending in tally.over(e for e in sample if e not in images and e.lower() != self._label_ending):
            tally.ignore_file(f"{stem}.{ending}")
        if not images:
            tally.listed += 1
            yield Item(f"{tar}/{stem}", tar, 0, 0, label, tar)  # it becomes a reject

    def _label(self, file: IO[bytes], where: str, sample: dict[str, tuple[int, int]]) -> str | None:
        column = self._choice.label_column
        found = [ending for ending in sample if ending.lower() == self._label_ending]
        if not found:
            return None
        if len(found) > 1:
            raise SourceError(f"{where}: two labels, .{found[0]} and .{found[1]}")
        offset, size = sample[found[0]]
        if size > MAX_LABEL_BYTES:
            raise SourceError(f"{where}: a label of {size:,} bytes; up to {MAX_LABEL_BYTES:,} are read")
        at = file.tell()
        file.seek(offset)
        data = file.read(size)
        file.seek(at)
        try:
            value = json.loads(data).get(column) if column else data.decode().strip()
        except (ValueError, AttributeError, RecursionError) as error:
            raise SourceError(f"{where}: its label cannot be read: {error}") from error
        return None if value in (None, "") else str(value)

    def read(self, items: Sequence[Item]) -> Iterator[Content]:
        return read_pieces(self._folder, items, self._choice.max_bytes)
