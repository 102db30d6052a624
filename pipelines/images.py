"""Bytes <-> pixels. Pixels are uint8 arrays [H, W, C], C = 1 (grey) or 3 (RGB).

OpenCV encodes and decodes what ganmill itself stores (at 64x64 two to four times Pillow's rate); Pillow opens what
people have, whatever it is.
"""

import io
import struct
import warnings

import cv2
import numpy as np
from PIL import Image, ImageColor, ImageOps, UnidentifiedImageError

Pixels = np.ndarray[tuple[int, ...], np.dtype[np.uint8]]

RESIZE_POLICIES = ("crop", "pad", "stretch")

cv2.setNumThreads(1)  # a worker is one core; cv2's own pool would fight the others


class ImageError(ValueError):
    """Bytes that are not an image that can be taken; the text is the reason."""


EXTENSIONS = {"png": "png", "jpeg": "jpg", "webp": "webp"}
_QUALITY = {"jpeg": cv2.IMWRITE_JPEG_QUALITY, "webp": cv2.IMWRITE_WEBP_QUALITY}


def encode(image_HWC: Pixels, image_format: str = "png", quality: int = 95) -> bytes:
    """PNG, which is lossless, or JPEG or WebP of a quality from 1 to 100.

    The same pixels give the same bytes under one version of OpenCV.
    """
    image = image_HWC if image_HWC.shape[2] == 1 else image_HWC[:, :, ::-1]
    options = [_QUALITY[image_format], quality] if image_format in _QUALITY else []
    done, data = cv2.imencode(f".{EXTENSIONS[image_format]}", np.ascontiguousarray(image), options)
    assert done, f"cv2 cannot encode {image_HWC.shape} {image_HWC.dtype}"
    return data.tobytes()


def decode(data: bytes, channels: int) -> Pixels:
    """An image that ganmill stored, as [H, W, channels]. Raises ImageError if it is not an image."""
    flag = cv2.IMREAD_GRAYSCALE if channels == 1 else cv2.IMREAD_COLOR
    image = cv2.imdecode(np.frombuffer(data, np.uint8), flag) if data else None
    if image is None:
        raise ImageError("not an image")
    return image[:, :, None] if channels == 1 else image[:, :, ::-1]  # type: ignore[return-value]  # cv2's stub knows no dtype


def normalise(data: bytes, size: int, channels: int, resize: str, background: tuple[int, int, int]) -> Pixels:
    """Any image that Pillow opens, as [size, size, channels].

    EXIF orientation is applied; transparency is laid over `background` (RGB); an animation gives its first frame.
    `resize` says what happens to another shape: `crop` the middle, `pad` with the background, or `stretch`. Images of
    the right size keep their pixels.

    Raises: ImageError with the reason: empty, not an image, truncated, or too large.
    """
    if not data:
        raise ImageError("empty")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            image: Image.Image = Image.open(io.BytesIO(data))
            image.load()
            image = ImageOps.exif_transpose(image)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ImageError("too large: a decompression bomb") from error
    except UnidentifiedImageError as error:
        raise ImageError("not an image") from error
    except (OSError, SyntaxError, ValueError, struct.error) as error:  # the last from a damaged EXIF block
        raise ImageError(f"damaged: {error}") from error
    image = _flatten(image, channels, background)
    return np.asarray(_fit(image, size, resize, background)).reshape(size, size, channels)


def colour(name: str) -> tuple[int, int, int]:
    """A CSS colour as RGB. Raises ImageError if Pillow does not know it."""
    try:
        red, green, blue = ImageColor.getrgb(name)[:3]
    except ValueError as error:
        raise ImageError(f"no colour {name!r}; write a CSS name or #rrggbb") from error
    return red, green, blue


def _flatten(image: Image.Image, channels: int, background: tuple[int, int, int]) -> Image.Image:
    """To greyscale or RGB, transparency laid over the background."""
    if image.mode.startswith("I;16") or image.mode == "I":
        image = Image.fromarray((np.asarray(image, np.uint32) >> 8).clip(0, 255).astype(np.uint8))
    if image.has_transparency_data:
        layer = Image.new("RGBA", image.size, (*background, 255))
        image = Image.alpha_composite(layer, image.convert("RGBA"))
    return image.convert("L" if channels == 1 else "RGB")


def _fit(image: Image.Image, size: int, resize: str, background: tuple[int, int, int]) -> Image.Image:
    target = (size, size)
    if image.size == target:
        return image
    if resize == "crop":
        return ImageOps.fit(image, target, Image.Resampling.LANCZOS)
    if resize == "pad":
        grey = Image.new("RGB", (1, 1), background).convert(image.mode).getpixel((0, 0))
        return ImageOps.pad(image, target, Image.Resampling.LANCZOS, color=grey)  # type: ignore[arg-type]  # stub lacks int
    return image.resize(target, Image.Resampling.LANCZOS)


def grid(images: list[list[Pixels]], scale: int = 1) -> Pixels:
    """Rows of equal images as one picture, two pixels apart, each pixel drawn `scale` x `scale`."""
    height, width, channels = images[0][0].shape
    gap = 2
    sheet = np.full(
        (len(images) * (height + gap) + gap, max(map(len, images)) * (width + gap) + gap, channels), 255, np.uint8
    )
    for r, row in enumerate(images):
        for c, image in enumerate(row):
            top, left = gap + r * (height + gap), gap + c * (width + gap)
            sheet[top : top + height, left : left + width] = image
    return sheet.repeat(scale, 0).repeat(scale, 1)
