"""The training method's settings: invalid values and combinations are refused."""

import math
from typing import Any

import pytest
from pydantic import ValidationError

from dcgan.configuration import reason
from dcgan.training.configuration import MethodConfig
from tests.training_runs import start


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"loss": "gan"}, "loss is 'gan'; it must be 'log', 'hinge', 'wgan' or 'wgan-gp'"),
        (
            {"loss": "wgan-gp", "label_smoothing": 0.1},
            "label_smoothing is 0.1; it must be 0 with loss wgan-gp, which has no target",
        ),
        (
            {"loss": "wgan-gp", "compile": True},
            "compile is set with loss wgan-gp; torch.compile does not support second derivatives",
        ),
        (
            {"loss": "wgan-gp", "sync_batch_norm": True},
            "sync_batch_norm is set with loss wgan-gp, whose penalty it would change: the penalty normalises its "
            "points by each worker's own batch statistics; leave sync_batch_norm out, or use another loss",
        ),
        ({"clip": 0.0}, "clip is 0.0; it must be greater than 0"),
        ({"gradient_penalty": -1.0}, "gradient_penalty is -1.0; it must be greater than 0"),
        ({"augment": "flip"}, "augment is 'flip'; it must be some of color,translation,cutout, joined by commas"),
        ({"label_smoothing": -0.1}, "label_smoothing is -0.1; it must be greater than or equal to 0"),
        ({"label_smoothing": 0.6}, "label_smoothing is 0.6; it must be less than or equal to 0.5"),
        ({"beta1": 1.0}, "beta1 is 1.0; it must be less than or equal to 0.999"),
        ({"ema": 1.0}, "ema is 1.0; it must be less than or equal to 0.99999"),
        ({"ema": math.nan}, "ema is nan; it must be a finite number"),
        ({"generator_lr": 0.0}, "generator_lr is 0.0; it must be greater than 0"),
        ({"discriminator_lr": 1.5}, "discriminator_lr is 1.5; it must be less than or equal to 1"),
        ({"discriminator_lr": math.nan}, "discriminator_lr is nan; it must be a finite number"),
    ],
)
def test_an_invalid_method_is_refused_with_the_field(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError) as caught:
        MethodConfig(**changes)
    assert reason(caught.value) == message


@pytest.mark.parametrize("loss", ["wgan", "wgan-gp"])
def test_cdcgan_refuses_critics(loss: str) -> None:
    with pytest.raises(ValueError, match=f"^loss is {loss}; with network cdcgan it must be log or hinge, .*; or use"):
        start("cdcgan", loss=loss)
