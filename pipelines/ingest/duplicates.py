"""Duplicates among images: `exact` by all pixels, `near` by a perceptual hash; the first of several is kept.

Near: the 64-bit hash of at most NEAR_BITS other bits, and a 4x4 thumbnail of at most NEAR_LEVELS other grey levels in
each of its values. The hash sees shapes and no colours, so the thumbnail has to agree too: a red heart is no duplicate
of a blue one. The hash is the signs of the 8x8 lowest frequencies around their median (pHash: Zauner 2010).
"""

import hashlib
from collections import defaultdict
from collections.abc import Iterable

import cv2
import numpy as np

from pipelines.images import Pixels

NEAR_BITS = 3
NEAR_LEVELS = 24
_BANDS = NEAR_BITS + 1  # two hashes that differ in 3 bits agree in one of 4 bands
_BAND_BITS = 64 // _BANDS
EXACT_BYTES = 16


def code(image_HWC: Pixels, mode: str) -> bytes:
    """What is compared of an image: 16 bytes for `exact`, 8 and a thumbnail of 16 or 48 for `near`."""
    if mode == "exact":
        return hashlib.blake2b(image_HWC.tobytes(), digest_size=EXACT_BYTES).digest()
    grey = image_HWC if image_HWC.shape[2] == 1 else cv2.cvtColor(image_HWC, cv2.COLOR_RGB2GRAY)
    small = cv2.resize(grey, (32, 32), interpolation=cv2.INTER_AREA).astype(np.float32)
    low = cv2.dct(small)[:8, :8].ravel()
    bits = np.packbits(low > np.median(low[1:]))  # without the mean, which says nothing of the shape
    thumbnail = cv2.resize(image_HWC, (4, 4), interpolation=cv2.INTER_AREA)
    return bits.tobytes() + thumbnail.tobytes()


def find(codes: Iterable[bytes], mode: str) -> dict[int, int]:
    """The duplicates among images, in the order in which they are to be kept: number -> number of the one kept.

    Holds some 150 bytes an image for `exact`, 600 for `near`.
    """
    return _exact(codes) if mode == "exact" else _near(codes)


def _exact(codes: Iterable[bytes]) -> dict[int, int]:
    first: dict[bytes, int] = {}
    kept = [first.setdefault(data, number) for number, data in enumerate(codes)]
    return {number: other for number, other in enumerate(kept) if other != number}


def _near(codes: Iterable[bytes]) -> dict[int, int]:
    """Each image against those kept before it that share a band with it; what is a duplicate itself keeps none away."""
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
