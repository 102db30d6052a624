"""A model as files: model.json and two safetensors. Nothing here can run code when it is read.

    model.json                  family and its configuration, class names, provenance, size and sha256 of the other two
    generator.safetensors       the exponential moving average of the trained generator
    discriminator.safetensors

The model's digest is the sha256 of model.json, which holds the others' hashes: `sha256sum model.json` names the model.

Format 2 names a family and its configuration; a field that the configuration lacks has the default that means "as
before". Format 1, of earlier versions, holds both in `network`.
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
MAX_HEADER_BYTES = 1 << 20  # of a safetensors file: ours have some kilobytes


class ModelError(ValueError):
    """Files that are not a model that this version can use."""


@dataclass(frozen=True, slots=True)
class Model:
    """Both networks, in eval mode where they were read from files. `provenance` says what they were trained on."""

    generator: Generator
    discriminator: Discriminator
    classes: list[str] | None
    provenance: dict[str, Any]

    @property
    def config(self) -> FamilyConfig:
        config: FamilyConfig = self.generator.config
        return config


def pack(model: Model) -> dict[str, bytes]:
    """The model's files by name, model.json last: a directory that has it is complete.

    Raises: ModelError naming file and tensor for a weight that is not finite.
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
    """The name of a model, from the bytes of its model.json."""
    return hashlib.sha256(card).hexdigest()


def read_card(card: bytes) -> dict[str, Any]:
    """model.json, checked against its schema. Raises ModelError naming what is wrong."""
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
            raise ModelError(f"{CARD}: {count} classes, but other names")
    except (AttributeError, KeyError, RecursionError, TypeError, ValueError) as error:
        raise error if isinstance(error, ModelError) else ModelError(f"{CARD} is not a model card: {error}") from error
    result: dict[str, Any] = parsed
    return result


def config_of(card: Mapping[str, Any]) -> FamilyConfig:
    """The configuration that a card names. Raises ValueError, KeyError or TypeError for one that names none."""
    if card["format"] == 1:
        shape = dict(card["network"])
        return registry.configure(shape.pop("network"), shape)
    return registry.configure(card["family"], card["config"])


def _types(values: dict[str, Any]) -> dict[str, type]:
    return {name: type(value) for name, value in values.items()}


def unpack(read: Callable[[str, int], bytes]) -> Model:
    """A model from its files, in eval mode. `read` gives a file's content by its name, up to a number of bytes.

    Raises: ModelError if a file is not what model.json says, does not fit the networks, or is not finite.

    A model may come from a stranger: how large its networks are is known, and its files' sizes compared with it, before
    memory is taken.
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
    found = {}  # read one after the other, before time is spent on networks: a run may replace its model meanwhile
    for name in WEIGHTS:
        expected = card["files"][name]
        found[name] = read(name, expected["bytes"])
        if len(found[name]) != expected["bytes"] or hashlib.sha256(found[name]).hexdigest() != expected["sha256"]:
            raise ModelError(f"{name} is not the file that {CARD} names (its size or sha256 is another)")
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
            raise ModelError(f"{name}: {tensor} is not finite: a model that diverged; use an earlier one")


def to_bytes(state: dict[str, Tensor]) -> bytes:
    """Tensors as safetensors: contiguous (channels_last is a matter of speed, not of the model) and on the CPU."""
    return safetensors.torch.save({name: tensor.detach().cpu().contiguous() for name, tensor in state.items()})


def from_bytes(data: bytes) -> dict[str, Tensor]:
    """The tensors of a safetensors file. Raises SafetensorError for anything else, a pickle included."""
    state: dict[str, torch.Tensor] = safetensors.torch.load(data)
    return state
