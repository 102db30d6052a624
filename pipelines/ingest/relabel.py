"""New names for the classes of a source: `{"tabby": "cat", "car": null}`; null leaves a class out."""

from collections.abc import Iterator, Mapping

from pipelines.sources.base import Item, Source


class Relabelling:
    """The new names, and which of them occurred."""

    def __init__(self, names: Mapping[str, str | None]) -> None:
        self.names = names
        self._used = set[str]()

    def items(self, source: Source) -> Iterator[Item]:
        """The source's items under their new class names. Items of classes that are left out are counted as ignored."""
        for item in source.items():
            if item.label is None or item.label not in self.names:
                yield item
                continue
            self._used.add(item.label)
            new = self.names[item.label]
            if new is not None:
                yield item._replace(label=new)
            else:
                source.tally.ignore("left out by --relabel")

    def classes(self, source: Source) -> list[str] | None:
        """The classes that the source declares, under their new names; None if it declares none."""
        if source.classes is None:
            return None
        new = [self.names.get(name, name) for name in source.classes]
        return list(dict.fromkeys(name for name in new if name is not None))

    @property
    def unused(self) -> list[str]:
        """Old names that no item had, once all items were listed."""
        return sorted(self.names.keys() - self._used)
