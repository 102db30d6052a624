"""From the content of a source to the pixels that a dataset stores."""

from pipelines import images
from pipelines.dataset.identity import IngestIdentity
from pipelines.images import ImageError, Pixels
from pipelines.sources.base import Content


def prepare(content: Content, label: object, identity: IngestIdentity) -> Pixels:
    """An image as the dataset of this identity stores it, [H, W, C].

    Args:   label: the item's class, by name or number; None if it has none.
    Raises: ImageError with the reason for an image that cannot be taken.
    """
    if isinstance(content, ImageError):
        raise content
    how, limits = identity.image, identity.limits
    if how.resize is None or how.background is None or limits is None:
        raise ValueError("the dataset's identity does not say how its images were resized")
    size, channels = identity.image_size, identity.channels
    image = images.normalise(content, size, channels, how.resize, how.background, limits.pixels)
    if identity.classes and label is None:
        raise ImageError("no label")
    return image
