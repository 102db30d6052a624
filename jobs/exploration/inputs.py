"""The inputs of an exploration: a model, its training images, and other real images."""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from dcgan.configuration import identity
from dcgan.model_files import Model
from jobs.command import model_store
from jobs.command.errors import UsageError
from pipelines.dataset import reader
from pipelines.dataset.layout import Index
from pipelines.loading import loader
from pipelines.storage.folder import Folder

_BATCH = 1024


@dataclass(frozen=True)
class Images:
    """Images of a dataset, in its order. `label_N` is -1 without classes."""

    role: str
    folder: Folder
    index: Index
    images_NHWC: np.ndarray
    label_N: np.ndarray

    def __len__(self) -> int:
        return len(self.label_N)

    def protocol(self) -> dict[str, Any]:
        """The facts about these images for a protocol."""
        return {
            "url": self.folder.url,
            "root": self.index.root,
            "images": self.index.samples,
            "drawn": len(self),
            "split": reader.read_claim(self.folder).settings.get("split"),
        }


@dataclass(frozen=True)
class Inputs:
    """A model and its images: at most `limit` of each dataset, sampled by `seed`."""

    model: Model
    digest: str
    model_folder: Folder
    real_folder: Folder
    holdout_folder: Folder | None
    limit: int
    seed: int

    @cached_property
    def real(self) -> Images:
        return _read("data", self.real_folder, self.limit, self.seed)

    @cached_property
    def holdout(self) -> Images | None:
        return None if self.holdout_folder is None else _read("holdout", self.holdout_folder, self.limit, self.seed)

    def protocol(self) -> dict[str, Any]:
        """The protocol of all numbers of an exploration."""
        datasets = {images.role: images.protocol() for images in (self.real, self.holdout) if images is not None}
        config = self.model.config
        return {
            "model": {
                "url": self.model_folder.url,
                "digest": self.digest,
                "network": config.family,
                **identity(config),
                "images_trained": self.model.provenance.get("images"),
                "trained_on_this_data": self.model.provenance.get("data") == self.real.index.root,
            },
            "datasets": datasets,
            "seed": self.seed,
        }


def open_inputs(model: str, data: str, holdout: str | None, limit: int, seed: int) -> Inputs:
    """Open a model and datasets that fit it. Raises UsageError, ModelError, DatasetError for inputs that do not fit."""
    opened, stored = model_store.open_model(Folder(model))
    folder, config = stored.folder, stored.config
    for role, url in (("data", data), ("holdout", holdout)):
        if url is None:
            continue
        index = reader.open_sealed(Folder(url))
        if index.image_shape != (config.image_size, config.image_size, config.channels):
            there = "x".join(map(str, index.image_shape))
            raise UsageError(
                f"--{role} {url} holds {there}, but --model {folder} makes "
                f"{config.image_size}x{config.image_size}x{config.channels}"
            )
    both = [reader.open_sealed(Folder(url)).classes for url in (data, holdout) if url is not None]
    if both[0] and both[-1] and both[0] != both[-1]:
        there, here = (", ".join(names or [])[:60] for names in (both[-1], both[0]))
        raise UsageError(f"--holdout {holdout} has the classes {there}, but --data {data} has {here}")
    return Inputs(opened, stored.digest, folder, Folder(data), Folder(holdout) if holdout else None, limit, seed)


def _read(role: str, folder: Folder, limit: int, seed: int) -> Images:
    """All images of a dataset, or a sample of `limit`."""
    index = reader.open_sealed(folder)
    drawn = np.random.default_rng([seed, 3]).permutation(index.samples)[:limit]
    wanted = np.zeros(index.samples, bool)
    wanted[drawn] = True
    kept, labels, position = [], [], 0
    for record in index.shards:
        for images_NHWC, label_N in loader.in_order(folder, index, record, _BATCH):
            mine = wanted[position : position + len(label_N)]
            kept.append(images_NHWC[mine])
            labels.append(label_N[mine])
            position += len(label_N)
    return Images(role, folder, index, np.concatenate(kept), np.concatenate(labels))
