"""The datasets of torchvision. Only this module imports torchvision, and only when a user names such a dataset."""

import inspect
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pipelines.dataset.attribution import NONE
from pipelines.errors import SourceError
from pipelines.sources import known_attributions
from pipelines.sources.base import Choice, Content, Item, Source, as_pixels, class_of, distinct


class TorchvisionSource(Source):
    """One of torchvision's named datasets, as `torchvision:CIFAR10`. Each machine downloads it once.

    torchvision checks the files by their published MD5 sums. They are in $XDG_CACHE_HOME/ganmill/torchvision.
    """

    def __init__(self, name: str, choice: Choice) -> None:
        super().__init__()
        from torchvision import datasets  # slow to import, and rarely used

        kind = getattr(datasets, name, None)
        if name not in datasets.__all__ or not inspect.isclass(kind):
            raise SourceError(f"--source torchvision:{name}: torchvision has no dataset of that name")
        cache = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "ganmill" / "torchvision"
        known = inspect.signature(kind).parameters
        arguments: dict[str, Any] = {"root": str(cache)} if "root" in known else {}
        if "download" in known:
            arguments["download"] = True
        if choice.split and "train" in known:
            arguments["train"] = {"train": True, "test": False}.get(choice.split)
        elif choice.split and "split" in known:
            arguments["split"] = choice.split
        elif choice.split:
            raise SourceError(f"--split {choice.split}: torchvision's {name} has no splits")
        if arguments.get("train", True) is None:
            raise SourceError(f"--split {choice.split}: torchvision's {name} has train and test")
        try:
            cache.mkdir(parents=True, exist_ok=True)
            self._data: Any = kind(**arguments)
        except (OSError, RuntimeError, ValueError, TypeError) as error:
            text = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise SourceError(f"--source torchvision:{name}: cannot be loaded: {text}") from error
        self.attribution = known_attributions.TORCHVISION.get(name, NONE)
        self._name = f"{name}-{choice.split}" if choice.split else name
        classes = getattr(self._data, "classes", None)
        self.classes = distinct(classes) if isinstance(classes, list | tuple) else None

    def items(self) -> Iterator[Item]:
        labels = getattr(self._data, "targets", None)
        for number in self.tally.over(range(len(self._data))):
            # Without a list of labels, each label needs the decoding of its image.
            label = labels[number] if labels is not None else self._data[number][1]
            yield Item(f"{self._name}#{number}", str(number), label=self._class(label, number))

    def _class(self, label: Any, number: int) -> str | None:
        if isinstance(label, int | np.integer) or (hasattr(label, "ndim") and label.ndim == 0):
            return class_of(int(label), self.classes, f"--source torchvision:{self._name}: image {number}")
        return None  # boxes, masks or captions are no class

    def read(self, items: Sequence[Item]) -> Iterator[Content]:
        for item in items:
            image = self._data[int(item.place)][0]
            yield as_pixels(np.asarray(image.convert("RGB") if image.mode not in ("L", "RGB") else image))
