"""What a training's state must be: finite, and of its own networks."""

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from dcgan.families import registry
from dcgan.families.family import FamilyConfig

_Kind = tuple[torch.dtype, tuple[int, ...]]  # of a tensor


class NonFiniteError(ArithmeticError):
    """A loss, weight or measure that is NaN or infinite. Training stops: nothing after it would be worth keeping."""


def check_finite(scalars: Mapping[str, float], images: int) -> None:
    """Raises NonFiniteError naming the values and how many images had been seen."""
    bad = {name: value for name, value in scalars.items() if not math.isfinite(value)}
    if bad:
        values = ", ".join(f"{name} = {value}" for name, value in bad.items())
        raise NonFiniteError(f"{values} after {images} images")


def check_weights(state: Mapping[str, Tensor], images: int) -> None:
    """Raises NonFiniteError naming the first tensor with a value that is NaN or infinite, and how many there are."""
    bad = [name for name, value in state.items() if value.is_floating_point() and not bool(value.isfinite().all())]
    if bad:
        others = f" (and {len(bad) - 1} more tensors)" if len(bad) > 1 else ""
        raise NonFiniteError(f"{bad[0]} holds values that are not finite{others} after {images} images")


def check_state(state: Mapping[str, Tensor], network: FamilyConfig) -> None:
    """Raises ValueError naming the first tensor in which `state` is not what Training.state() of `network` gives."""
    expected = _layout(network)
    for name in sorted({*expected, *state}):
        found = (state[name].dtype, tuple(state[name].shape)) if name in state else None
        if found != expected.get(name):
            raise ValueError(f"another network's: {name} is {_words(found)}, not {_words(expected.get(name))}")


def _layout(network: FamilyConfig) -> dict[str, _Kind]:
    """Every tensor of Training.state() after a step: its dtype and shape."""
    with torch.device("meta"):
        generator, discriminator = registry.build(network)
    layout: dict[str, _Kind] = {}
    for name, part in (("generator", generator), ("discriminator", discriminator), ("average", generator)):
        layout.update({f"{name}.{key}": (value.dtype, tuple(value.shape)) for key, value in part.state_dict().items()})
    for name, part in (("generator_adam", generator), ("discriminator_adam", discriminator)):
        for number, weight in enumerate(part.parameters()):
            layout[f"{name}.{number}.step"] = (torch.float32, ())
            for moment in ("exp_avg", "exp_avg_sq"):
                layout[f"{name}.{number}.{moment}"] = (weight.dtype, tuple(weight.shape))
    return layout


def _words(kind: _Kind | None) -> str:
    return f"{kind[0]} {kind[1]}" if kind else "absent"
