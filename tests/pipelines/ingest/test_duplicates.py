"""Duplicates: the first of equal images is kept, and what only resembles is not lost."""

import cv2
import numpy as np
import pytest

from pipelines.images import Pixels
from pipelines.ingest import duplicates


def picture(seed: int, channels: int = 3) -> Pixels:
    """Smooth shapes, as pictures have and noise has not."""
    small = np.random.default_rng(seed).integers(0, 256, (6, 6, channels), np.uint8)
    return cv2.resize(small, (64, 64), interpolation=cv2.INTER_CUBIC).reshape(64, 64, channels)


def find(images: list[Pixels], mode: str) -> dict[int, int]:
    return duplicates.find([duplicates.code(image, mode) for image in images], mode)


@pytest.mark.parametrize("mode", ["exact", "near"])
@pytest.mark.parametrize("channels", [1, 3])
def test_equal_images_are_found_and_the_first_is_kept(mode: str, channels: int) -> None:
    several = [picture(n, channels) for n in (0, 1, 0, 2, 1, 0)]
    assert find(several, mode) == {2: 0, 4: 1, 5: 0}
    assert find([], mode) == {}


def test_one_other_grey_level_is_no_exact_duplicate() -> None:
    other = picture(0).copy()
    other[3, 3, 1] ^= 1
    assert find([picture(0), other], "exact") == {}
    assert find([picture(0), other], "near") == {1: 0}


def test_what_was_compressed_scaled_or_brightened_is_near() -> None:
    image = picture(3)
    jpeg = cv2.imdecode(cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, 60])[1], cv2.IMREAD_COLOR)
    scaled = cv2.resize(cv2.resize(image, (40, 40), interpolation=cv2.INTER_AREA), (64, 64))
    brighter = np.clip(image.astype(int) + 8, 0, 255).astype(np.uint8)
    assert find([image, jpeg, scaled, brighter], "near") == {1: 0, 2: 0, 3: 0}


def test_the_same_shape_in_another_colour_is_none() -> None:
    red, blue = np.full((64, 64, 3), 255, np.uint8), np.full((64, 64, 3), 255, np.uint8)
    cv2.circle(red, (32, 32), 20, (220, 0, 0), -1)
    cv2.circle(blue, (32, 32), 20, (0, 0, 220), -1)
    assert find([red, blue], "near") == {}
    flat = [np.full((64, 64, 3), level, np.uint8) for level in (0, 128, 255)]
    assert find(flat, "near") == {}


def test_no_two_of_many_pictures_are_near() -> None:
    assert find([picture(seed) for seed in range(2000)], "near") == {}


def test_bands_find_what_a_comparison_of_all_finds() -> None:
    """Hashes that differ by 0 to 5 bits, against the definition, tried on every pair in order."""
    rng = np.random.default_rng(0)
    bits = rng.integers(0, 2, (40, 64))
    codes = []
    for _ in range(600):
        code = bits[rng.integers(40)].copy()
        code[rng.choice(64, rng.integers(0, 6), replace=False)] ^= 1
        codes.append(np.packbits(code).tobytes() + bytes(rng.integers(100, 140, 16, np.uint8)))
    expected: dict[int, int] = {}
    for number, code in enumerate(codes):
        for other in range(number):
            if other in expected:
                continue
            apart = int.from_bytes(code[:8], "big") ^ int.from_bytes(codes[other][:8], "big")
            levels = [abs(a - b) for a, b in zip(code[8:], codes[other][8:], strict=True)]
            if apart.bit_count() <= duplicates.NEAR_BITS and max(levels) <= duplicates.NEAR_LEVELS:
                expected[number] = other
                break
    assert duplicates.find(codes, "near") == expected
    assert len(expected) > 50
