"""A folder tree of image files, local or on an object store."""

from collections.abc import Iterator, Sequence

from pipelines.images import ImageError
from pipelines.sources.base import Choice, Content, Item, Source, ahead, changed, folder_label, is_image, too_large
from pipelines.storage.folder import Folder, MissingError, TooLargeError


class FolderSource(Source):
    """A folder tree. An image's class is the name of its folder."""

    def __init__(self, folder: Folder, choice: Choice) -> None:
        super().__init__()
        self._folder = folder / choice.split if choice.split else folder
        self._limit = choice.max_bytes

    def items(self) -> Iterator[Item]:
        for name, size in self.tally.over(self._folder.walk(hidden=True)):
            if is_image(name):
                yield Item(name, name, size=size, label=folder_label(name))
            else:
                self.tally.ignore_file(name)

    def read(self, items: Sequence[Item]) -> Iterator[Content]:
        return ahead(self._content, items) if self._folder.remote else map(self._content, items)

    def _content(self, item: Item) -> Content:
        if item.size < 0:
            return ImageError("not found: a link to nothing, or no regular file")
        if item.size > self._limit:
            return too_large(item.size, self._limit)
        where = f"{self._folder}/{item.place}"
        try:
            data = self._folder.read(item.place, limit=item.size)
        except MissingError as error:
            raise changed(where, "missing") from error
        except TooLargeError as error:
            raise changed(where, f"more than the {item.size:,} bytes that it had") from error
        if len(data) != item.size:
            raise changed(where, f"{len(data):,} bytes, of {item.size:,} that it had")
        return data
