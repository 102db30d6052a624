"""Bytes <-> pixels. Pixels are uint8 arrays [H, W, C], C = 1 (grey) or 3 (RGB).

OpenCV encodes and decodes the images that ganmill stores (at 64x64 two to four times Pillow's rate). Pillow opens the
users' images, in many formats.
"""

import functools
import io
import struct
import warnings

import cv2
import numpy as np
from PIL import Image, ImageCms, ImageColor, ImageOps, UnidentifiedImageError

from pipelines.image_header import MAX_PIXELS

Pixels = np.ndarray[tuple[int, ...], np.dtype[np.uint8]]

# The formats that are opened, by content. Others run programs (EPS: Ghostscript) or are not used for training.
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF")
_ORIENTATION = {"exif", "xmp", "Raw profile type exif", "XML:com.adobe.xmp"}  # Pillow keeps the orientation here
_MODES = ("1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr", "HSV")

Image.MAX_IMAGE_PIXELS = None  # ours is checked instead, before any pixel is decoded
cv2.setNumThreads(1)  # a worker is one core; cv2's own pool would fight the others


class ImageError(ValueError):
    """Bytes that cannot be used as an image. The text is the reason. Datasets store it, so it must not change."""


class LimitError(ImageError):
    """An image that is larger than the user allows. It is not damaged."""


EXTENSIONS = {"png": "png", "jpeg": "jpg", "webp": "webp"}
_QUALITY = {"jpeg": cv2.IMWRITE_JPEG_QUALITY, "webp": cv2.IMWRITE_WEBP_QUALITY}


def encode(image_HWC: Pixels, image_format: str = "png", quality: int = 95) -> bytes:
    """PNG, which is lossless, or JPEG or WebP of a quality from 1 to 100.

    The same pixels give the same bytes under one version of OpenCV.
    """
    image = image_HWC if image_HWC.shape[2] == 1 else cv2.cvtColor(image_HWC, cv2.COLOR_RGB2BGR)
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


def normalise(
    content: bytes | Pixels,
    size: int,
    channels: int,
    resize: str,
    background: tuple[int, int, int],
    max_pixels: int = MAX_PIXELS,
) -> Pixels:
    """A user's image, a file's bytes or pixels, as [size, size, channels].

    The EXIF orientation is applied; colours of an embedded ICC profile become sRGB; transparency is laid over
    `background` (RGB); 16 bits become 8 by their upper half; an animation gives its first frame. `resize`
    decides about another shape: `crop` the middle, `pad` with the background, or `stretch`, antialiased. Images of the
    right size keep their pixels.

    Raises: ImageError with the reason: empty, not an image, damaged, too large, or an unsupported kind of pixels.
    """
    if isinstance(content, bytes):
        try:
            image = _flatten(_open(content, max_pixels), channels, background)
        except ValueError as error:
            raise error if isinstance(error, ImageError) else ImageError(f"damaged: {error}") from error
    elif content.shape == (size, size, channels):
        return content
    else:
        image = Image.fromarray(content[:, :, 0] if content.shape[2] == 1 else content)
        image = image.convert("L" if channels == 1 else "RGB")
    return np.asarray(_fit(image, size, resize, background)).reshape(size, size, channels)


def _open(data: bytes, max_pixels: int) -> Image.Image:
    """The decoded first frame, upright."""
    if not data:
        raise ImageError("empty")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about damaged metadata beside good pixels
            image: Image.Image = Image.open(io.BytesIO(data), formats=FORMATS)
            width, height = image.size
            if width * height > max_pixels:  # before a pixel is decoded
                raise LimitError(f"too large: {width}x{height} pixels, of {max_pixels:,} that are allowed")
            image.load()
            oriented = image.format == "TIFF" or not _ORIENTATION.isdisjoint(image.info)
            return ImageOps.exif_transpose(image) if oriented else image  # a check costs half a small decoding
    except UnidentifiedImageError as error:
        raise ImageError("not an image") from error
    except ImageError:
        raise
    except (
        OSError,
        SyntaxError,
        ValueError,
        struct.error,
        EOFError,
        MemoryError,
    ) as error:  # also a damaged EXIF block
        raise ImageError(f"damaged: {error}") from error


def colour(name: str) -> tuple[int, int, int]:
    """A CSS colour as RGB. Raises ImageError if Pillow does not know it."""
    try:
        red, green, blue = ImageColor.getrgb(name)[:3]
    except ValueError as error:
        raise ImageError(f"no colour {name!r}; write a CSS name or #rrggbb") from error
    return red, green, blue


def _flatten(image: Image.Image, channels: int, background: tuple[int, int, int]) -> Image.Image:
    """To greyscale or RGB in sRGB, transparency laid over the background."""
    profile = image.info.get("icc_profile")
    if image.mode.startswith("I;16") or image.mode == "I":
        image = Image.fromarray((np.asarray(image, np.uint32) >> 8).clip(0, 255).astype(np.uint8))
    if image.mode not in _MODES:
        raise ImageError(f"a kind of pixels that is not taken: {image.mode}")
    alpha = None
    if image.has_transparency_data:
        image = image.convert("RGBA")
        alpha = image.getchannel("A")
    if profile or image.mode == "CMYK":
        image = _to_srgb(image, profile)
    if alpha is not None:
        layer = Image.new("RGB", image.size, background)
        layer.paste(image.convert("RGB"), mask=alpha)
        image = layer
    return image.convert("L" if channels == 1 else "RGB")


def _to_srgb(image: Image.Image, profile: bytes | None) -> Image.Image:
    """Convert colours from a profile to sRGB. A profile that is damaged, or of another kind of pixels, is ignored."""
    if image.mode not in ("L", "CMYK"):
        image = image.convert("RGB")
    try:
        transform = _transform(profile or b"", image.mode)
        return image if transform is None else ImageCms.applyTransform(image, transform) or image
    except (ImageCms.PyCMSError, OSError, ValueError):
        return image


@functools.lru_cache(64)  # most images have one of few profiles, and making a transform takes milliseconds
def _transform(profile: bytes, mode: str) -> ImageCms.ImageCmsTransform | None:
    """The transform from a profile to sRGB; None where none is needed."""
    if not profile:
        return None  # CMYK without a profile: Pillow's own conversion
    source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
    if "sRGB" in ImageCms.getProfileDescription(source):
        return None
    space = {"L": "GRAY", "RGB": "RGB ", "CMYK": "CMYK"}[mode]
    if source.profile.xcolor_space != space:
        raise ValueError(f"a profile of {source.profile.xcolor_space}")
    return ImageCms.buildTransform(source, ImageCms.createProfile("sRGB"), mode, "RGB")


def _fit(image: Image.Image, size: int, resize: str, background: tuple[int, int, int]) -> Image.Image:
    if image.size == (size, size):
        return image
    width, height = image.size
    if resize == "pad":
        scale = size / max(width, height)
        inner = _scaled(image, (max(1, round(width * scale)), max(1, round(height * scale))), (0, 0, width, height))
        fill = Image.new("RGB", (1, 1), background).convert(image.mode).getpixel((0, 0))
        canvas = Image.new(image.mode, (size, size), fill)
        canvas.paste(inner, (round((size - inner.width) / 2), round((size - inner.height) / 2)))
        return canvas
    side = min(width, height)
    middle = ((width - side) / 2, (height - side) / 2, (width + side) / 2, (height + side) / 2)
    return _scaled(image, (size, size), middle if resize == "crop" else (0, 0, width, height))


def _scaled(image: Image.Image, target: tuple[int, int], box: tuple[float, float, float, float]) -> Image.Image:
    """A part of an image, resized with Lanczos. A part of 4 times the size and more is first averaged down to twice.

    Averaging halves the time for a photograph. The result differs from Lanczos alone by 0.3 grey levels (mean; 52 dB).
    """
    return image.resize(target, Image.Resampling.LANCZOS, box, reducing_gap=2.0)


def grid(images: list[list[Pixels]], scale: int = 1) -> Pixels:
    """Rows of images of one size as one picture, two pixels apart, each pixel enlarged to `scale` x `scale`."""
    height, width, channels = images[0][0].shape
    gap = 2
    canvas = np.full(
        (len(images) * (height + gap) + gap, max(map(len, images)) * (width + gap) + gap, channels), 255, np.uint8
    )
    for r, row in enumerate(images):
        for c, image in enumerate(row):
            top, left = gap + r * (height + gap), gap + c * (width + gap)
            canvas[top : top + height, left : left + width] = image
    return canvas.repeat(scale, 0).repeat(scale, 1)


def grid_scale(size: int) -> int:
    """The scale at which a grid of images of this size is easy to see."""
    return max(1, 64 // size)
