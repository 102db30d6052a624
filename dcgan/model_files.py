"""A model as files: model.json and two safetensors files. Reading them cannot run code.

    model.json                  family, configuration, class names, provenance, calibration of the score, if there is
                                one; size and sha256 of the other two files
    generator.safetensors       the exponential moving average of the trained generator
    discriminator.safetensors

`model_card` describes model.json.
"""

import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from dcgan.errors import ModelError
from dcgan.families import registry
from dcgan.families.family import FamilyConfig
from dcgan.families.networks import Discriminator, Generator
from dcgan.model_card import CARD, FORMAT, MAX_CARD_BYTES, MAX_HEADER_BYTES, WEIGHTS, check_size, config_of, read_card


@dataclass(frozen=True, slots=True)
class Model:
    """Both networks, in eval mode if they were read from files. `provenance` describes their training data.

    `calibration` is `evaluation.calibration.Calibration` as JSON, and the real images that it was fitted to.
    """

    generator: Generator
    discriminator: Discriminator
    classes: list[str] | None
    provenance: dict[str, Any]
    calibration: dict[str, Any] | None = None

    @property
    def config(self) -> FamilyConfig:
        config: FamilyConfig = self.generator.config
        return config


def pack(model: Model) -> dict[str, bytes]:
    """The model's files by name. model.json is last: a directory that has it is complete.

    Raises: ModelError, with the file and the tensor, for a weight that is not finite.
    """
    states = (model.generator.state_dict(), model.discriminator.state_dict())
    for name, state in zip(WEIGHTS, states, strict=True):
        _check_finite(name, state)
    weights = {name: to_bytes(state) for name, state in zip(WEIGHTS, states, strict=True)}
    card = {
        "format": FORMAT,
        "family": model.config.family,
        "config": asdict(model.config),
        "classes": model.classes,
        "provenance": model.provenance,
        "files": {
            name: {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()} for name, data in weights.items()
        },
    }
    if model.calibration:
        card["calibration"] = model.calibration
    return {**weights, CARD: json.dumps(card, indent=1, sort_keys=True).encode() + b"\n"}


def unpack(read: Callable[[str, int], bytes]) -> Model:
    """A model from its files, in eval mode.

    Models may come from untrusted sources. Before memory is allocated, the file sizes are checked against the sizes of
    the networks.

    Args:   read: returns the content of a file, given its name and the most bytes to read.
    Raises: ModelError if a file does not match model.json or the networks, or has values that are not finite.
    """
    card = read_card(read(CARD, MAX_CARD_BYTES))
    config = config_of(card)
    with torch.device("meta"):
        sizes = [sum(t.nbytes for t in network.state_dict().values()) for network in registry.build(config)]
    for name, size in zip(WEIGHTS, sizes, strict=True):
        expected = card["files"][name]["bytes"]
        check_size(name, card)
        if not size <= expected <= size + MAX_HEADER_BYTES:
            raise ModelError(f"{name} does not fit the networks: {expected:,} bytes, their tensors have {size:,}")
    # All files are read before the networks are built, which takes time: a run may replace its model meanwhile.
    found = {}
    for name in WEIGHTS:
        expected = card["files"][name]
        found[name] = read(name, expected["bytes"])
        if len(found[name]) != expected["bytes"] or hashlib.sha256(found[name]).hexdigest() != expected["sha256"]:
            raise ModelError(f"{name} is not the file that {CARD} names (its size or sha256 differs)")
    generator, discriminator = registry.build(config)
    for name, network in zip(WEIGHTS, (generator, discriminator), strict=True):
        try:
            state = from_bytes(found[name])
            other = [
                key for key, tensor in network.state_dict().items() if key in state and state[key].dtype != tensor.dtype
            ]
            if other:
                raise ModelError(f"{name} does not fit the networks: {other[0]} is {state[other[0]].dtype}")
            network.load_state_dict(state)
        except (SafetensorError, RuntimeError) as error:
            raise ModelError(f"{name} does not fit the networks: {str(error).splitlines()[0]}") from error
        _check_finite(name, state)
        network.eval()
    return Model(generator, discriminator, card["classes"], card["provenance"], card.get("calibration"))


def _check_finite(name: str, state: dict[str, Tensor]) -> None:
    for tensor, values in state.items():
        if not torch.isfinite(values).all():
            raise ModelError(f"{name}: {tensor} is not finite: the model diverged; use an earlier one")


def to_bytes(state: dict[str, Tensor]) -> bytes:
    """Tensors as the bytes of a safetensors file. They are made contiguous: memory layout is not part of a model."""
    return safetensors.torch.save({name: tensor.detach().cpu().contiguous() for name, tensor in state.items()})


def from_bytes(data: bytes) -> dict[str, Tensor]:
    """The tensors of a safetensors file. Raises SafetensorError for any other content, including a pickle."""
    state: dict[str, torch.Tensor] = safetensors.torch.load(data)
    return state
