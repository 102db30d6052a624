"""Checks of a training state: its values are finite, and its tensors fit the networks."""

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from dcgan.families import registry
from dcgan.families.family import FamilyConfig

_TensorType = tuple[torch.dtype, tuple[int, ...]]  # dtype and shape


class NonFiniteError(ArithmeticError):
    """A loss, weight or metric is NaN or infinite. Training stops, because later results would be useless."""


def check_finite(scalars: Mapping[str, float], images: int) -> None:
    """Raises NonFiniteError, with the values and the number of images seen, unless all scalars are finite."""
    bad = {name: value for name, value in scalars.items() if not math.isfinite(value)}
    if bad:
        values = ", ".join(f"{name} = {value}" for name, value in bad.items())
        raise NonFiniteError(f"{values} after {images} images")


def check_weights(state: Mapping[str, Tensor], images: int) -> None:
    """Raises NonFiniteError if a value is NaN or infinite, with its tensor and the number of such tensors."""
    bad = [name for name, value in state.items() if value.is_floating_point() and not bool(value.isfinite().all())]
    if bad:
        others = f" (and {len(bad) - 1} more tensors)" if len(bad) > 1 else ""
        raise NonFiniteError(f"{bad[0]} holds values that are not finite{others} after {images} images")


def check_state(state: Mapping[str, Tensor], network: FamilyConfig) -> None:
    """Raises ValueError, with the first wrong tensor, unless `state` is a Training.state() of `network`."""
    expected = _layout(network)
    for name in sorted({*expected, *state}):
        found = (state[name].dtype, tuple(state[name].shape)) if name in state else None
        if found != expected.get(name):
            raise ValueError(f"another network's: {name} is {_describe(found)}, not {_describe(expected.get(name))}")


def _layout(network: FamilyConfig) -> dict[str, _TensorType]:
    """The dtype and shape of every tensor of Training.state() after a step, by name."""
    with torch.device("meta"):
        generator, discriminator = registry.build(network)
    layout: dict[str, _TensorType] = {}
    for name, part in (("generator", generator), ("discriminator", discriminator), ("average", generator)):
        layout.update({f"{name}.{key}": (value.dtype, tuple(value.shape)) for key, value in part.state_dict().items()})
    for name, part in (("generator_adam", generator), ("discriminator_adam", discriminator)):
        for number, weight in enumerate(part.parameters()):
            layout[f"{name}.{number}.step"] = (torch.float32, ())
            for moment in ("exp_avg", "exp_avg_sq"):
                layout[f"{name}.{number}.{moment}"] = (weight.dtype, tuple(weight.shape))
    return layout


def _describe(tensor: _TensorType | None) -> str:
    return f"{tensor[0]} {tensor[1]}" if tensor else "absent"
