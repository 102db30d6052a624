"""Model files: the round trip, the digest, and the refusal of everything that is not a model."""

import hashlib
import json
import pickle
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch

from dcgan import model_card, model_files
from dcgan.errors import ModelError
from dcgan.families.family import FamilyConfig
from dcgan.families.registry import FAMILIES, build
from dcgan.model_card import CARD, MAX_CARD_BYTES, MAX_WEIGHTS_BYTES, WEIGHTS
from dcgan.model_files import Model
from tests.families import configure

Files = dict[str, bytes]
CONFIGS = {
    "dcgan": configure("dcgan", image_size=28, channels=1, width=2, z_dim=3),
    "dcgan with classes": configure("dcgan", image_size=64, channels=3, width=1, z_dim=5, num_classes=2),
    "cdcgan": configure("cdcgan", image_size=28, channels=1, width=1, z_dim=3, num_classes=2),
    "keras": configure("keras", image_size=28, channels=1, width=1, z_dim=3, num_classes=2),
    "gan": configure("gan", image_size=28, channels=1, z_dim=3),
}
GENERATOR, DISCRIMINATOR = WEIGHTS


def make(config: FamilyConfig) -> Model:
    torch.manual_seed(0)
    generator, discriminator = build(config)
    for network in (generator, discriminator):
        for name, value in network.named_buffers():
            value.copy_(torch.randint(1, 9, value.shape) if "num_batches" in name else torch.rand(value.shape) + 0.5)
    names = [f"class {n}" for n in range(config.num_classes)] or None
    return Model(generator.eval(), discriminator.eval(), names, {"data": "ab12", "images": 5000, "köln": [1.5, None]})


def packed(kind: str = "dcgan with classes") -> Files:
    return model_files.pack(make(CONFIGS[kind]))


def reader(files: Files) -> Callable[[str, int], bytes]:
    """A function that reads the files, at most one byte beyond the limit."""
    return lambda name, limit: files[name][: limit + 1]


def with_card(files: Files, change: Callable[[dict[str, Any]], Any]) -> Files:
    """The files with a changed card."""
    card = json.loads(files[CARD])
    change(card)
    return {**files, CARD: json.dumps(card).encode()}


def with_weights(files: Files, name: str, data: bytes) -> Files:
    """The files with other weights, and a card with their size and sha256."""
    entry = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    return with_card({**files, name: data}, lambda card: card["files"].update({name: entry}))


def refusal(files: Files) -> str:
    with pytest.raises(ModelError) as caught:
        model_files.unpack(reader(files))
    return str(caught.value)


@pytest.mark.parametrize("kind", CONFIGS)
def test_a_packed_model_is_unpacked_in_eval_mode(kind: str) -> None:
    model = make(CONFIGS[kind])
    read = model_files.unpack(reader(model_files.pack(model)))
    assert (read.config, read.classes, read.provenance) == (CONFIGS[kind], model.classes, model.provenance)
    for before, after in ((model.generator, read.generator), (model.discriminator, read.discriminator)):
        assert not any(module.training for module in after.modules())
        assert list(before.state_dict()) == list(after.state_dict())
        for name, value in before.state_dict().items():
            other = after.state_dict()[name]
            assert (other.dtype, torch.equal(value, other)) == (value.dtype, True), name


@pytest.mark.parametrize("kind", CONFIGS)
def test_packing_does_not_depend_on_memory_layout_or_mode(kind: str) -> None:
    model = make(CONFIGS[kind])
    other = make(CONFIGS[kind])
    other.generator.to(memory_format=torch.contiguous_format)
    other.discriminator.train()
    assert model_files.pack(other) == model_files.pack(model)
    assert model_files.pack(model_files.unpack(reader(model_files.pack(model)))) == model_files.pack(model)


def test_the_card_is_last_has_the_other_hashes_and_its_sha256_is_the_digest() -> None:
    files = packed()
    assert list(files) == [GENERATOR, DISCRIMINATOR, "model.json"]
    card = json.loads(files["model.json"])
    assert model_card.digest(files["model.json"]) == hashlib.sha256(files["model.json"]).hexdigest()
    assert card["files"] == {
        name: {"bytes": len(files[name]), "sha256": hashlib.sha256(files[name]).hexdigest()} for name in WEIGHTS
    }
    assert model_card.read_card(files["model.json"]) == card


def test_the_digest_depends_on_weights_class_names_and_provenance() -> None:
    models = [make(CONFIGS["dcgan with classes"]) for _ in range(4)]
    with torch.no_grad():
        models[1].discriminator.head.bias += 1e-30
    models[2] = Model(models[2].generator, models[2].discriminator, ["class 0", "class one"], models[2].provenance)
    models[3] = Model(models[3].generator, models[3].discriminator, models[3].classes, {})
    assert len({model_card.digest(model_files.pack(model)[CARD]) for model in models}) == 4


LINE = {"slope": 0.58, "intercept": -0.16, "auc": 0.671}


def test_a_calibration_is_kept_and_a_model_without_one_has_no_field_for_it() -> None:
    assert "calibration" not in json.loads(packed()[CARD])
    model = replace(make(CONFIGS["dcgan"]), calibration=LINE)
    files = model_files.pack(model)
    read = model_files.unpack(reader(files))
    assert read.calibration == LINE
    assert model_files.pack(read) == files
    assert model_card.line_of(read.calibration) == (0.58, -0.16)
    assert model_card.line_of(model_files.unpack(reader(packed())).calibration) == (1.0, 0.0)


@pytest.mark.parametrize(
    "change",
    [
        {"slope": 0.0},
        {"slope": -1.0},
        {"slope": float("nan")},
        {"slope": float("inf")},
        {"slope": 1},
        {"slope": "1.0"},
        {"slope": True},
        {"intercept": float("nan")},
        {"intercept": -1e300},
        {"intercept": None},
    ],
)
def test_a_calibration_that_is_no_rising_line_is_refused(change: dict[str, Any]) -> None:
    wrong = with_card(packed(), lambda card: card.update(calibration={**LINE, **change}))
    assert refusal(wrong).startswith("model.json")


@pytest.mark.parametrize("calibration", [[], [1.0, 2.0], "line", 3, {"slope": 1.0}, {"intercept": 1.0}])
def test_a_calibration_of_another_shape_is_refused(calibration: Any) -> None:
    wrong = with_card(packed(), lambda card: card.update(calibration=calibration))
    assert refusal(wrong).startswith("model.json")


@pytest.mark.parametrize("name", WEIGHTS)
def test_weights_that_differ_from_the_card_in_any_byte_are_refused(name: str) -> None:
    files = packed("dcgan")
    data, rng = files[name], np.random.default_rng(0)
    wrong = [data[:-1], data + b"\0", b""]
    for position in {0, 7, 8, len(data) - 1, *rng.integers(0, len(data), 30).tolist()}:
        wrong.append(data[:position] + bytes([data[position] ^ int(rng.integers(1, 256))]) + data[position + 1 :])
    for other in wrong:
        assert refusal({**files, name: other}) == (
            f"{name} is not the file that model.json names (its size or sha256 differs)"
        )


def test_a_flipped_byte_of_the_card_is_refused_or_changes_the_digest() -> None:
    card = packed()[CARD]
    refused = 0
    for position in range(len(card)):
        flipped = card[:position] + bytes([card[position] ^ 0x11]) + card[position + 1 :]
        assert model_card.digest(flipped) != model_card.digest(card)
        try:
            model_card.read_card(flipped)
        except ModelError:
            refused += 1
    assert refused > len(card) // 2


def test_weights_of_another_shape_are_refused() -> None:
    files = packed("dcgan")
    other = model_files.pack(make(configure("dcgan", image_size=28, channels=1, width=3, z_dim=3)))
    for name in WEIGHTS:
        assert refusal(with_weights(files, name, other[name])).startswith(f"{name} does not fit the networks: ")
    wider = with_card(files, lambda card: card["config"].update(width=4))
    assert refusal(wider).startswith(f"{GENERATOR} does not fit the networks: ")


def test_weights_with_a_missing_or_additional_tensor_are_refused() -> None:
    files = packed("dcgan")
    state = safetensors.torch.load(files[DISCRIMINATOR])
    fewer = {name: value for name, value in state.items() if name != "head.bias"}
    for wrong in (fewer, {**state, "more": torch.zeros(1)}, {}):
        data = safetensors.torch.save(wrong)
        message = refusal(with_weights(files, DISCRIMINATOR, data))
        assert message.startswith(f"{DISCRIMINATOR} does not fit the networks: ")


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("name", WEIGHTS)
def test_a_model_that_is_not_finite_is_neither_packed_nor_unpacked(name: str, value: float) -> None:
    """The last value of each tensor in turn, including biases and the statistics of norms."""
    model = make(CONFIGS["dcgan with classes"])
    files = model_files.pack(model)
    state = (model.generator if name == GENERATOR else model.discriminator).state_dict()
    found = [tensor for tensor, values in state.items() if values.is_floating_point()]
    assert len(found) > 8
    for tensor in found:
        last = tuple(size - 1 for size in state[tensor].shape)
        kept = state[tensor][last].clone()
        state[tensor][last] = value
        message = f"{name}: {tensor} is not finite: the model diverged; use an earlier one"
        with pytest.raises(ModelError) as caught:
            model_files.pack(model)
        assert str(caught.value) == message
        assert refusal(with_weights(files, name, model_files.to_bytes(state))) == message
        state[tensor][last] = kept
    assert model_files.pack(model) == files


class Bomb:
    """An object whose unpickling creates a file."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Path]]:
        return Path.touch, (self.mark,)


@pytest.mark.parametrize("writer", ["pickle", "torch.save", "torch.save, old format"])
def test_a_pickle_named_safetensors_is_refused_and_never_run(writer: str, tmp_path: Path) -> None:
    mark, file = tmp_path / "executed", tmp_path / "weights"
    if writer == "pickle":
        file.write_bytes(pickle.dumps(Bomb(mark)))
    else:
        torch.save({"w": Bomb(mark)}, file, _use_new_zipfile_serialization="old" not in writer)
    files = packed("dcgan")
    for name in WEIGHTS:
        message = refusal(with_weights(files, name, file.read_bytes()))
        assert message.startswith(f"{name} does not fit the networks: ")
    assert not mark.exists()
    if writer == "pickle":
        pickle.loads(file.read_bytes())  # noqa: S301  # shows that the pickle would run
        assert mark.exists()


def update(**values: Any) -> Callable[[dict[str, Any]], Any]:
    return lambda card: card.update(values)


def config(**values: Any) -> Callable[[dict[str, Any]], Any]:
    return lambda card: card["config"].update(values)


def weights(**values: Any) -> Callable[[dict[str, Any]], Any]:
    return lambda card: card["files"][GENERATOR].update(values)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (update(format=3), "model.json has format 3; this version reads 1 and 2"),
        (update(format="1"), "model.json has format '1'; this version reads 1 and 2"),
        (lambda card: card.pop("format"), "model.json is not a model card: 'format'"),
        (update(extra=1), "model.json has other fields than this version knows"),
        (lambda card: card.pop("provenance"), "model.json has other fields than this version knows"),
        (lambda card: card["files"].update(more={}), "model.json has other fields than this version knows"),
        (lambda card: card["files"].pop(GENERATOR), "model.json has other fields than this version knows"),
        (config(extra=1), "model.json is not a model card: extra is 1; Unexpected keyword argument"),
        (config(width=2.5), "model.json is not a model card: width is 2.5; it must be a valid integer"),
        (config(width="2"), "model.json is not a model card: width is '2'; it must be a valid integer"),
        (config(num_classes=True), "model.json is not a model card: num_classes is True; it must be a valid integer"),
        (
            update(family=None),
            "model.json is not a model card: network is None; it must be one of " + ", ".join(FAMILIES),
        ),
        (config(width=4096), "model.json is not a model card: width is 4096; it must be less than or equal to 512"),
        (config(image_size=65), "model.json is not a model card: image_size is 65; it must be 28, 32, 64 or 128"),
        (weights(path="/etc/passwd"), "model.json: files has other fields than this version knows"),
        (
            lambda card: card["files"][GENERATOR].pop("bytes"),
            "model.json: files has other fields than this version knows",
        ),
        (weights(bytes="9"), "model.json: files has other fields than this version knows"),
        (
            weights(bytes=MAX_WEIGHTS_BYTES + 1),
            f"{GENERATOR}: {MAX_WEIGHTS_BYTES + 1} bytes; at most {MAX_WEIGHTS_BYTES} are read",
        ),
        (weights(bytes=0), f"{GENERATOR}: 0 bytes; at most {MAX_WEIGHTS_BYTES} are read"),
        (update(classes=None), "model.json: the names do not match 2 classes"),
        (update(classes=["one"]), "model.json: the names do not match 2 classes"),
        (update(classes=["one", 2]), "model.json: the names do not match 2 classes"),
        (update(classes="ab"), "model.json: the names do not match 2 classes"),
    ],
)
def test_an_invalid_card_is_refused_with_the_reason(change: Callable[[dict[str, Any]], Any], message: str) -> None:
    assert refusal(with_card(packed(), change)) == message


@pytest.mark.parametrize("classes", [[], ["one"]])
def test_a_model_without_classes_has_no_class_names(classes: list[str]) -> None:
    files = with_card(packed("dcgan"), update(classes=classes))
    assert refusal(files) == "model.json: the names do not match 0 classes"


@pytest.mark.parametrize("card", [b"", b"{", b"[]", b"null", b"7", b'"x"', b"\xff\xfe\x00", b"[" * 100_000])
def test_a_file_that_is_not_a_card_is_refused(card: bytes) -> None:
    assert refusal({**packed(), CARD: card}).startswith("model.json is not a model card: ")


def test_a_card_that_is_too_large_is_refused_unparsed() -> None:
    card = packed()[CARD]
    padded = card + b" " * (MAX_CARD_BYTES - len(card))
    assert model_card.read_card(padded) == model_card.read_card(card)
    with pytest.raises(ModelError) as caught:
        model_card.read_card(padded + b" ")
    assert str(caught.value) == f"model.json has {MAX_CARD_BYTES + 1} bytes; at most {MAX_CARD_BYTES} are read"


def of_format_1(files: Files) -> Files:
    """The files with a card of format 1, as earlier versions wrote it."""

    def change(card: dict[str, Any]) -> None:
        card.update(format=1, network={"network": card.pop("family"), **card.pop("config")})

    return with_card(files, change)


@pytest.mark.parametrize("kind", CONFIGS)
def test_a_model_of_format_1_is_read(kind: str) -> None:
    files = packed(kind)
    old, new = (model_files.unpack(reader(each)) for each in (of_format_1(files), files))
    assert old.config == new.config == CONFIGS[kind]
    assert model_files.pack(old) == files  # packing writes the current format


def test_a_field_that_is_missing_in_a_card_has_its_default() -> None:
    files = with_card(packed(), lambda card: card["config"].pop("z_dim"))
    assert model_card.config_of(json.loads(files[CARD])).z_dim == 100
    assert refusal(files).startswith(f"{GENERATOR} does not fit the networks: ")
