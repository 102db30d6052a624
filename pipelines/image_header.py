"""The size that an image's header declares, before anything is decoded: some bytes can stand for gigabytes."""

import io
import struct

from PIL import Image, UnidentifiedImageError

MAX_PIXELS = 89_478_485  # of an image: Pillow's own limit, 256 MB as RGB
_PNG = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR"


def dimensions(data: bytes) -> tuple[int, int] | None:
    """Height and width that a PNG, JPEG or WebP declares; None if it is none of them."""
    if data.startswith(_PNG) and len(data) >= 24:  # by hand: Pillow takes as long as the decoder
        width, height = struct.unpack_from(">II", data, 16)
        return height, width
    try:
        with Image.open(io.BytesIO(data), formats=("JPEG", "WEBP")) as image:
            return image.height, image.width
    except (UnidentifiedImageError, Image.DecompressionBombError, OSError, ValueError, SyntaxError, struct.error):
        return None
