"""From the content of a source to the pixels that a dataset stores."""

from collections.abc import Mapping
from typing import Any

from pipelines import images
from pipelines.images import ImageError, Pixels
from pipelines.sources.base import Content


def prepare(content: Content, label: object, identity: Mapping[str, Any]) -> Pixels:
    """An image as the dataset of this identity stores it, [H, W, C].

    Args:   label: the item's class, by name or number; None if it has none.
    Raises: ImageError with the reason for an image that cannot be taken.
    """
    if isinstance(content, ImageError):
        raise content
    how = identity["image"]
    image = images.normalise(
        content,
        identity["image_size"],
        identity["channels"],
        how["resize"],
        tuple(how["background"]),
        identity["limits"]["pixels"],
    )
    if identity["classes"] and label is None:
        raise ImageError("no label")
    return image
