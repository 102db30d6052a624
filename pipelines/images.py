"""Bytes <-> pixels. Pixels are uint8 arrays [H, W, C], C = 1 (grey) or 3 (RGB).

OpenCV encodes and decodes what ganmill itself stores (at 64x64 two to four times Pillow's rate); Pillow opens what
people have, whatever it is.
"""

import functools
import io
import struct
import warnings

import cv2
import numpy as np
from PIL import Image, ImageCms, ImageColor, ImageOps, UnidentifiedImageError

Pixels = np.ndarray[tuple[int, ...], np.dtype[np.uint8]]

RESIZE_POLICIES = ("crop", "pad", "stretch")
# What is opened, by content. Others run programs (EPS: Ghostscript) or are no pictures that people train on.
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF")
MAX_PIXELS = 89_478_485  # Pillow's own limit: 256 MB as RGB
_ORIENTATION = {"exif", "xmp", "Raw profile type exif", "XML:com.adobe.xmp"}  # where Pillow keeps what may tell it
_MODES = ("1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr", "HSV")

Image.MAX_IMAGE_PIXELS = None  # our own limit is checked instead, before any pixel is decoded
cv2.setNumThreads(1)  # a worker is one core; cv2's own pool would fight the others


class ImageError(ValueError):
    """Bytes that are not an image that can be taken; the text is the reason."""


class LimitError(ImageError):
    """An image that is larger than the user lets it be: nothing is wrong with it."""


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
    """Any image that people have, a file's bytes or pixels, as [size, size, channels].

    EXIF orientation is applied; colours of an embedded ICC profile become sRGB; transparency is laid over `background`
    (RGB); 16 bits become 8 by their upper half; of an animation the first frame is taken. `resize` says what happens to
    another shape: `crop` the middle, `pad` with the background, or `stretch`, antialiased. Images of the right size
    keep their pixels.

    Raises: ImageError with the reason: empty, not an image, damaged, too large, or a kind of pixels that is not taken.
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
            warnings.simplefilter("ignore")  # of damaged metadata beside good pixels
            image: Image.Image = Image.open(io.BytesIO(data), formats=FORMATS)
            width, height = image.size
            if width * height > max_pixels:  # before a pixel is decoded
                raise LimitError(f"too large: {width}x{height} pixels, of {max_pixels:,} that are allowed")
            image.load()
            oriented = image.format == "TIFF" or not _ORIENTATION.isdisjoint(image.info)
            return ImageOps.exif_transpose(image) if oriented else image  # looking costs half of a small decoding
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
    """Colours of a profile as sRGB's. A profile that is damaged, or of another kind of pixels, is left aside."""
    if image.mode not in ("L", "CMYK"):
        image = image.convert("RGB")
    try:
        transform = _transform(profile or b"", image.mode)
        return image if transform is None else ImageCms.applyTransform(image, transform) or image
    except (ImageCms.PyCMSError, OSError, ValueError):
        return image


@functools.lru_cache(64)  # most pictures have one of few profiles, and making a transform takes milliseconds
def _transform(profile: bytes, mode: str) -> ImageCms.ImageCmsTransform | None:
    """From a profile to sRGB; None where nothing is to be done."""
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
        sheet = Image.new(image.mode, (size, size), fill)
        sheet.paste(inner, (round((size - inner.width) / 2), round((size - inner.height) / 2)))
        return sheet
    side = min(width, height)
    middle = ((width - side) / 2, (height - side) / 2, (width + side) / 2, (height + side) / 2)
    return _scaled(image, (size, size), middle if resize == "crop" else (0, 0, width, height))


def _scaled(image: Image.Image, target: tuple[int, int], box: tuple[float, float, float, float]) -> Image.Image:
    """A part of an image, antialiased by Lanczos; one of 4 times the size and more is first averaged down to twice.

    The latter halves the time of a photograph and stays within 0.3 grey levels (mean; 52 dB) of Lanczos alone.
    """
    return image.resize(target, Image.Resampling.LANCZOS, box, reducing_gap=2.0)


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
