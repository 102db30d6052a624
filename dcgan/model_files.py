"""A model as files: model.json and two safetensors files. Reading them cannot run code.

    model.json                  family, configuration, class names, provenance; size and sha256 of the other two files
    generator.safetensors       the exponential moving average of the trained generator
    discriminator.safetensors

The model's digest is the sha256 of model.json, which holds the hashes of the other files. `sha256sum model.json` prints
it.

Format 2 stores the family and its configuration. A field that is missing there has its default, which means "as
before". Format 1, of earlier versions, stores both in `network`.
"""

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from dcgan.families import registry
from dcgan.families.family import Discriminator, FamilyConfig, Generator

FORMAT = 2
CARD = "model.json"
WEIGHTS = ("generator.safetensors", "discriminator.safetensors")
MAX_CARD_BYTES = 1 << 20
MAX_WEIGHTS_BYTES = 4 << 30
MAX_HEADER_BYTES = 1 << 20  # of a safetensors file; those written here have a few kilobytes


class ModelError(ValueError):
    """The files are not a model that this version can use."""


@dataclass(frozen=True, slots=True)
class Model:
    """Both networks, in eval mode if they were read from files. `provenance` describes their training data."""

    generator: Generator
    discriminator: Discriminator
    classes: list[str] | None
    provenance: dict[str, Any]

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
    return {**weights, CARD: json.dumps(card, indent=1, sort_keys=True).encode() + b"\n"}


def digest(card: bytes) -> str:
    """The model's digest, from the bytes of its model.json."""
    return hashlib.sha256(card).hexdigest()


def read_card(card: bytes) -> dict[str, Any]:
    """model.json, parsed and checked against its schema. Raises ModelError with the reason."""
    if len(card) > MAX_CARD_BYTES:
        raise ModelError(f"{CARD} has {len(card)} bytes; at most {MAX_CARD_BYTES} are read")
    try:
        parsed = json.loads(card)
        shape = {"family", "config"}
        if parsed["format"] == 1:
            shape = {"network"}
        elif parsed["format"] != FORMAT:
            raise ModelError(f"{CARD} has format {parsed['format']!r}; this version reads 1 and {FORMAT}")
        if set(parsed) != {"format", "classes", "provenance", "files"} | shape or set(parsed["files"]) != set(WEIGHTS):
            raise ModelError(f"{CARD} has other fields than this version knows")
        if any(_types(file) != {"bytes": int, "sha256": str} for file in parsed["files"].values()):
            raise ModelError(f"{CARD}: files has other fields than this version knows")
        classes, count = parsed["classes"], config_of(parsed).num_classes
        named = isinstance(classes, list) and [*map(type, classes)] == [str] * count
        if not (named if count else classes is None):
            raise ModelError(f"{CARD}: the names do not match {count} classes")
    except (AttributeError, KeyError, RecursionError, TypeError, ValueError) as error:
        raise error if isinstance(error, ModelError) else ModelError(f"{CARD} is not a model card: {error}") from error
    result: dict[str, Any] = parsed
    return result


def config_of(card: Mapping[str, Any]) -> FamilyConfig:
    """The configuration in a card. Raises ValueError, KeyError or TypeError if the card has no valid one."""
    if card["format"] == 1:
        shape = dict(card["network"])
        return registry.configure(shape.pop("network"), shape)
    return registry.configure(card["family"], card["config"])


def _types(values: dict[str, Any]) -> dict[str, type]:
    return {name: type(value) for name, value in values.items()}


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
        if not 0 < expected <= MAX_WEIGHTS_BYTES:
            raise ModelError(f"{name}: {expected} bytes; at most {MAX_WEIGHTS_BYTES} are read")
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
    return Model(generator, discriminator, card["classes"], card["provenance"])


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
