"""Augmentation: the effect of each policy, its gradients, and its seed."""

from itertools import permutations

import pytest
import torch
from torch import Tensor

from dcgan.training import augmentation
from dcgan.training.augmentation import augment
from dcgan.training.configuration import POLICIES, check_policy

ALL = "color,translation,cutout"
SIZES = [(1, 28), (3, 28), (1, 64), (3, 32)]


def images(channels: int, size: int, count: int = 64) -> Tensor:
    torch.manual_seed(0)
    return torch.rand(count, channels, size, size) * 2 - 1


def test_the_settings_name_each_policy() -> None:
    assert tuple(augmentation._FUNCTIONS) == POLICIES


@pytest.mark.parametrize(("channels", "size"), SIZES)
@pytest.mark.parametrize("policy", ["", *POLICIES, "color,cutout", ALL])
def test_the_seed_decides_the_result_and_the_shape_stays(policy: str, channels: int, size: int) -> None:
    before = images(channels, size)
    seen = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        seen.append(augment(before, policy))
    assert seen[0].shape == before.shape
    assert torch.equal(seen[0], seen[1])
    assert torch.equal(seen[0], seen[2]) == (policy == "")


def test_no_policy_returns_the_same_images_and_draws_nothing() -> None:
    before = images(3, 28)
    torch.manual_seed(5)
    assert augment(before, "") is before
    after = torch.rand(3)
    torch.manual_seed(5)
    assert torch.equal(torch.rand(3), after)


@pytest.mark.parametrize(("channels", "size"), SIZES)
def test_translation_shifts_all_pixels_alike_and_fills_with_grey(channels: int, size: int) -> None:
    before, most = images(channels, size), round(size / 8)
    after = augment(before, "translation")
    shifts = set()
    for x, y in zip(before, after, strict=True):
        framed = torch.nn.functional.pad(x, (most,) * 4)
        found = [
            (down, right)
            for down in range(2 * most + 1) for right in range(2 * most + 1)
            if torch.equal(framed[:, down : down + size, right : right + size], y)
        ]  # fmt: skip
        assert len(found) == 1
        shifts.update(found)
    downs, rights = ({shift[axis] - most for shift in shifts} for axis in (0, 1))
    for found_on_axis in (downs, rights):
        assert min(found_on_axis) < 0 < max(found_on_axis)
        assert max(map(abs, found_on_axis)) <= most


@pytest.mark.parametrize(("channels", "size"), SIZES)
def test_cutout_clears_a_square_of_half_the_extent_and_no_other_pixel(channels: int, size: int) -> None:
    before = images(channels, size)
    after = augment(before, "cutout")
    gone_BCHW = after == 0
    assert torch.equal(after[~gone_BCHW], before[~gone_BCHW])
    assert torch.equal(gone_BCHW.all(1), gone_BCHW.any(1))  # all channels alike
    for gone_HW in gone_BCHW[:, 0]:
        rows, columns = gone_HW.any(1).nonzero().flatten(), gone_HW.any(0).nonzero().flatten()
        assert gone_HW.sum() == len(rows) * len(columns)  # a full rectangle
        for line in (rows, columns):
            assert torch.equal(line, torch.arange(int(line[0]), int(line[-1]) + 1))
            assert size // 4 <= len(line) <= size // 2
            assert len(line) == size // 2 or 0 in line or size - 1 in line  # smaller only at the edge


@pytest.mark.parametrize("channels", [1, 3])
def test_color_maps_each_pixel_with_three_numbers_per_image(channels: int) -> None:
    before = images(channels, 28)
    after = augment(before, "color")
    for x, y in zip(before, after, strict=True):
        grey_before, grey_after = x.mean(0).flatten(), y.mean(0).flatten()
        brightness = grey_after.mean() - grey_before.mean()
        contrast = grey_after.std() / grey_before.std()
        assert abs(brightness) <= 0.5
        assert 0.5 <= contrast <= 1.5
        assert torch.allclose(
            grey_after, contrast * (grey_before - grey_before.mean()) + grey_before.mean() + brightness, atol=1e-4
        )
        if channels == 3:  # the saturation is the same for all pixels
            colour_before, colour_after = x - x.mean(0), y - y.mean(0)
            saturation = (colour_after * colour_before).sum() / (colour_before**2).sum() / contrast
            assert -1e-4 <= saturation <= 2.0 + 1e-4
            assert torch.allclose(colour_after, contrast * saturation * colour_before, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("channels", [1, 3])
def test_gradients_reach_every_visible_pixel(channels: int, dtype: torch.dtype) -> None:
    before = images(channels, 28).to(dtype).requires_grad_()
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
        after = augment(before, "translation,cutout")
    after.sum().backward()
    assert torch.equal(before.grad.sum((1, 2, 3)), (after != 0).sum((1, 2, 3)).to(dtype))  # 1 for each visible pixel
    before.grad = None
    augment(before, ALL).float().square().sum().backward()
    assert torch.isfinite(before.grad).all()
    assert (before.grad != 0).any(dim=1).float().mean() > 0.4


@pytest.mark.parametrize("policy", [",".join(names) for n in range(4) for names in permutations(POLICIES, n)])
def test_policies_in_any_combination_are_applied_in_order(policy: str) -> None:
    check_policy(policy)  # raises for an unknown policy
    before = expected = images(3, 28)
    torch.manual_seed(1)
    for name in policy.split(",") if policy else []:
        expected = getattr(augmentation, name)(expected)
    torch.manual_seed(1)
    assert torch.equal(augment(before, policy), expected)


@pytest.mark.parametrize("policy", ["colour", "color,,cutout", "color, cutout", "color,color", ","])
def test_unknown_and_repeated_policies_are_refused(policy: str) -> None:
    with pytest.raises(ValueError, match="augment is") as caught:
        check_policy(policy)
    assert str(caught.value) == (
        f"augment is {policy!r}; it must be some of color,translation,cutout, joined by commas"
    )
