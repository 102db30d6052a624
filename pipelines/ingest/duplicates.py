"""Duplicates among images: `exact` by all pixels, `near` by a perceptual hash. The first of several is kept.

Two images are near if their 64-bit hashes differ in at most NEAR_BITS bits, and the values of their 4x4 thumbnails by
at most NEAR_LEVELS grey levels. The hash depends on shapes only, so the thumbnail is needed for colours: a red heart is
no duplicate of a blue one. A bit of the hash says whether one of the 8x8 lowest frequencies is above their median
(pHash: Zauner 2010).
"""

import hashlib
from collections import defaultdict
from collections.abc import Iterable

import cv2
import numpy as np

from pipelines.images import Pixels

NEAR_BITS = 3
NEAR_LEVELS = 24
_BANDS = NEAR_BITS + 1  # two hashes that differ in 3 bits are equal in at least one of 4 bands
_BAND_BITS = 64 // _BANDS
EXACT_BYTES = 16


def code(image_HWC: Pixels, mode: str) -> bytes:
    """The code by which an image is compared: 16 bytes for `exact`, 8 and a thumbnail of 16 or 48 for `near`."""
    if mode == "exact":
        return hashlib.blake2b(image_HWC.tobytes(), digest_size=EXACT_BYTES).digest()
    grey = image_HWC if image_HWC.shape[2] == 1 else cv2.cvtColor(image_HWC, cv2.COLOR_RGB2GRAY)
    small = cv2.resize(grey, (32, 32), interpolation=cv2.INTER_AREA).astype(np.float32)
    low = cv2.dct(small)[:8, :8].ravel()
    bits = np.packbits(low > np.median(low[1:]))  # without the mean, which does not depend on the shape
    thumbnail = cv2.resize(image_HWC, (4, 4), interpolation=cv2.INTER_AREA)
    return bits.tobytes() + thumbnail.tobytes()


def find(codes: Iterable[bytes], mode: str) -> dict[int, int]:
    """The duplicates among images: number -> number of the image that is kept. Of duplicates the first is kept.

    Needs some 150 bytes of memory an image for `exact`, 600 for `near`.
    """
    return _exact(codes) if mode == "exact" else _near(codes)


def _exact(codes: Iterable[bytes]) -> dict[int, int]:
    first: dict[bytes, int] = {}
    kept = [first.setdefault(data, number) for number, data in enumerate(codes)]
    return {number: other for number, other in enumerate(kept) if other != number}


def _near(codes: Iterable[bytes]) -> dict[int, int]:
    """Compare each image with the kept ones that share a band with it. A duplicate never removes another image."""
    found: dict[int, int] = {}
    bands: defaultdict[int, list[tuple[int, int]]] = defaultdict(list)
    thumbnails: dict[int, np.ndarray] = {}
    for number, data in enumerate(codes):
        bits = int.from_bytes(data[:8], "big")
        thumbnail = np.frombuffer(data, np.uint8, offset=8).astype(np.int16)
        keys = [band << 32 | bits >> band * _BAND_BITS & (1 << _BAND_BITS) - 1 for band in range(_BANDS)]
        near = {other for key in keys for other, its in bands[key] if (bits ^ its).bit_count() <= NEAR_BITS}
        same = next((o for o in sorted(near) if np.abs(thumbnails[o] - thumbnail).max() <= NEAR_LEVELS), None)
        if same is not None:
            found[number] = same
            continue
        thumbnails[number] = thumbnail
        for key in keys:
            bands[key].append((number, bits))
    return found
