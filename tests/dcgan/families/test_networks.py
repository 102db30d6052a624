"""The networks' shapes, initial weights and limits, compared with the papers and with Keras-GAN."""

import itertools
from collections.abc import Iterable
from typing import Any

import pytest
import torch
from torch import nn

from dcgan.families.family import IMAGE_SIZES, FamilyConfig
from dcgan.families.layers import JoinClass, Projection
from dcgan.families.registry import FAMILIES, build
from tests.families import configure

# extents and channels of the maps between latent and image, at width 4
MAPS = {28: [(7, 8), (14, 4)], 32: [(4, 16), (8, 8), (16, 4)], 64: [(4, 32), (8, 16), (16, 8), (32, 4)]}
MAPS[128] = [(4, 64), (8, 32), (16, 16), (32, 8), (64, 4)]
SHAPES = [
    *itertools.product(["dcgan"], IMAGE_SIZES, (1, 3), (0, 5)),
    *itertools.product(["cdcgan"], (28, 64), (1, 3), (0, 5)),
    *itertools.product(["keras"], (28,), (1, 3), (0, 5)),
    *itertools.product(["gan"], (28, 32), (1, 3), (0, 5)),
]


def config(network: str, image_size: int, channels: int, num_classes: int, **more: Any) -> FamilyConfig:
    shape = {"image_size": image_size, "channels": channels, "num_classes": num_classes}
    return configure(network, **shape, width=4, z_dim=10, **more)


def labels(count: int, num_classes: int) -> torch.Tensor | None:
    return torch.arange(count) % num_classes if num_classes else None


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_latents_become_images_in_range_and_images_become_one_logit_each(shape: tuple[str, int, int, int]) -> None:
    settings = config(*shape)
    generator, discriminator = build(settings)
    label_B = labels(6, settings.num_classes)
    image_BCHW = generator(3 * torch.randn(6, 10), label_B)
    assert image_BCHW.shape == (6, settings.channels, settings.image_size, settings.image_size)
    assert image_BCHW.abs().max() <= 1
    assert image_BCHW.std() > 0
    logit_B = discriminator(image_BCHW, label_B)
    assert logit_B.shape == (6,)
    assert logit_B.std() > 0


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_every_parameter_of_both_networks_is_learnt(shape: tuple[str, int, int, int]) -> None:
    settings = config(*shape)
    generator, discriminator = build(settings)
    label_B = labels(5, settings.num_classes)
    discriminator(generator(torch.randn(5, 10), label_B), label_B).square().sum().backward()
    for network in (generator, discriminator):
        unlearnt = [name for name, parameter in network.named_parameters() if not parameter.grad.abs().sum() > 0]
        # a batch norm removes the bias of the layer before it
        assert [name for name in unlearnt if not name.endswith("bias")] == []


@pytest.mark.parametrize("image_size", IMAGE_SIZES)
def test_maps_double_in_extent_and_halve_in_channels(image_size: int) -> None:
    settings = config("dcgan", image_size, 3, 0)
    generator, discriminator = build(settings)
    z_BZ = torch.randn(2, 10)
    maps = generator.project(z_BZ, None)
    found = [maps.shape[1:]]
    for layer in generator.layers:
        maps = layer(maps)
        if isinstance(layer, nn.ConvTranspose2d):
            found.append(maps.shape[1:])
    assert [(height, channels) for channels, height, _ in found] == [*MAPS[image_size], (image_size, 3)]
    found = []
    for layer in discriminator.layers:
        maps = layer(maps)
        if isinstance(layer, nn.Conv2d):
            found.append(maps.shape[1:])
    assert [(height, channels) for channels, height, _ in found] == MAPS[image_size][::-1]


def test_at_the_papers_size_the_maps_are_those_of_the_paper() -> None:
    settings = configure("dcgan", image_size=64, channels=3, width=128, z_dim=100)
    assert (settings.base, settings.widths) == (4, [1024, 512, 256, 128])
    generator, discriminator = build(settings)
    assert generator.project.linear.weight.shape == (4 * 4 * 1024, 100)
    kernels = [layer.weight.shape for layer in generator.layers if isinstance(layer, nn.ConvTranspose2d)]
    assert kernels == [(1024, 512, 4, 4), (512, 256, 4, 4), (256, 128, 4, 4), (128, 3, 4, 4)]
    kernels = [layer.weight.shape for layer in discriminator.layers if isinstance(layer, nn.Conv2d)]
    assert kernels == [(128, 3, 4, 4), (256, 128, 4, 4), (512, 256, 4, 4), (1024, 512, 4, 4)]
    assert discriminator.head.weight.shape == (1, 4 * 4 * 1024)


def test_every_layer_has_batch_norm_except_the_output_and_the_input() -> None:
    generator, discriminator = build(config("dcgan", 64, 3, 0))
    names = [type(layer).__name__ for layer in generator.layers]
    assert names == ["BatchNorm2d", "ReLU", *["ConvTranspose2d", "BatchNorm2d", "ReLU"] * 3, "ConvTranspose2d", "Tanh"]
    names = [type(layer).__name__ for layer in discriminator.layers]
    assert names == ["Conv2d", "LeakyReLU", *["Conv2d", "BatchNorm2d", "LeakyReLU"] * 3]
    slopes = {layer.negative_slope for layer in discriminator.layers if isinstance(layer, nn.LeakyReLU)}
    assert slopes == {0.2}


def test_the_cdcgan_is_the_papers_network_for_mnist() -> None:
    """The shapes of Radford et al.'s mnist/train_cond_dcgan.py, with 4x4 instead of 5x5 kernels and half the units."""
    generator, discriminator = build(
        configure("cdcgan", image_size=28, channels=1, width=64, z_dim=100, num_classes=10)
    )

    def outline(layers: Iterable[nn.Module]) -> list[Any]:
        return [
            (type(layer).__name__, layer.linear.in_features, layer.shape) if isinstance(layer, Projection)
            else (type(layer).__name__, *layer.weight.shape[:2]) if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d)
            else type(layer).__name__
            for layer in layers
        ]  # fmt: skip

    norm, join = "BatchNorm2d", "JoinClass"
    assert outline([generator.project, *generator.layers]) == [
        ("Projection", 100 + 10, (1, 1, 512)), norm, "ReLU",
        ("Projection", 512 + 10, (7, 7, 128)), norm, "ReLU",
        join, ("ConvTranspose2d", 128 + 10, 64), norm, "ReLU",
        join, ("ConvTranspose2d", 64 + 10, 1), "Tanh",
    ]  # fmt: skip
    assert outline(discriminator.layers) == [
        join, ("Conv2d", 64, 1 + 10), "LeakyReLU",
        join, ("Conv2d", 128, 64 + 10), norm, "LeakyReLU",
        ("Projection", 7 * 7 * 128 + 10, (1, 1, 512)), norm, "LeakyReLU",
        join,
    ]  # fmt: skip
    assert discriminator.head.weight.shape == (1, 512 + 10)


def test_the_class_is_joined_as_channels_of_zeros_and_ones() -> None:
    join, maps = JoinClass(3), torch.randn(2, 4, 5, 5).to(memory_format=torch.channels_last)
    joined = join(maps, torch.tensor([2, 0]))
    assert joined.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(joined[:, :4], maps)
    for row, label in enumerate((2, 0)):
        assert torch.equal(joined[row, 4:], torch.eye(3)[label, :, None, None].expand(3, 5, 5))
    assert not join(maps)[:, 4:].any()  # without a label


def test_the_keras_network_equals_keras_gan_layer_by_layer() -> None:
    generator, discriminator = build(configure("keras", image_size=28, channels=1, z_dim=100))
    assert generator.project.linear.weight.shape == (7 * 7 * 128, 100)

    def outline(layers: nn.Sequential) -> list[tuple[Any, ...]]:
        return [
            (type(layer).__name__, *layer.weight.shape, layer.stride[0]) if isinstance(layer, nn.Conv2d)
            else (type(layer).__name__, layer.p) if isinstance(layer, nn.Dropout)
            else (type(layer).__name__, layer.num_features, layer.momentum) if isinstance(layer, nn.BatchNorm2d)
            else (type(layer).__name__,)
            for layer in layers
        ]  # fmt: skip

    assert outline(generator.layers) == [
        ("ReLU",),
        ("Upsample",), ("Conv2d", 128, 128, 3, 3, 1), ("BatchNorm2d", 128, 0.2), ("ReLU",),
        ("Upsample",), ("Conv2d", 64, 128, 3, 3, 1), ("BatchNorm2d", 64, 0.2), ("ReLU",),
        ("Conv2d", 1, 64, 3, 3, 1), ("Tanh",),
    ]  # fmt: skip
    assert outline(discriminator.layers) == [
        ("Conv2d", 32, 1, 3, 3, 2), ("LeakyReLU",), ("Dropout", 0.25),
        ("Conv2d", 64, 32, 3, 3, 2), ("BatchNorm2d", 64, 0.2), ("LeakyReLU",), ("Dropout", 0.25),
        ("Conv2d", 128, 64, 3, 3, 2), ("BatchNorm2d", 128, 0.2), ("LeakyReLU",), ("Dropout", 0.25),
        ("Conv2d", 256, 128, 3, 3, 1), ("BatchNorm2d", 256, 0.2), ("LeakyReLU",), ("Dropout", 0.25),
    ]  # fmt: skip
    assert discriminator.head.weight.shape == (1, 4 * 4 * 256)


def test_the_gan_has_the_layers_of_goodfellow_et_al() -> None:
    """1x1 convolutions of 1x1 maps are fully connected layers. The pixels keep their order."""
    generator, discriminator = build(configure("gan", image_size=28, channels=3, z_dim=100))
    assert [layer.weight.shape[:2] for layer in generator.layers if isinstance(layer, nn.Conv2d)] == [
        (1200, 1200),
        (3 * 28 * 28, 1200),
    ]
    pixels = torch.arange(3 * 28 * 28.0).view(1, -1, 1, 1)
    image = generator.layers[-2](pixels)
    assert torch.equal(image.flatten(), pixels.flatten())
    assert torch.equal(discriminator.layers[0](image), pixels)
    _, first, maxout, dropout, second, *_ = discriminator.layers
    assert (first.weight.shape[:2], second.weight.shape[:2]) == ((1200, 3 * 28 * 28), (1200, 240))
    assert dropout.p == 0.5
    assert maxout(torch.arange(10.0).view(1, 10, 1, 1)).flatten().tolist() == [4.0, 9.0]
    assert discriminator.head.weight.shape == (1, 240)


@pytest.mark.parametrize("network", FAMILIES)
def test_the_label_decides_the_image_and_the_logit(network: str) -> None:
    generator, discriminator = (each.eval() for each in build(config(network, 28, 1, 3)))
    z_BZ = torch.randn(1, 10).expand(3, -1)
    images = generator(z_BZ, torch.arange(3))
    assert len({image.detach().numpy().tobytes() for image in images}) == 3
    logits = discriminator(images[:1].expand(3, -1, -1, -1), torch.arange(3))
    assert len({*logits.tolist()}) == 3


def test_the_class_joins_the_latent_as_one_hot() -> None:
    generator, _ = build(config("dcgan", 28, 1, 3))
    z_BZ, linear = torch.randn(2, 10), generator.project.linear
    map_BCHW = generator.project(z_BZ, torch.tensor([2, 0]))
    for row, label in enumerate((2, 0)):
        expected = linear.weight[:, :10] @ z_BZ[row] + linear.weight[:, 10 + label] + linear.bias
        assert torch.allclose(map_BCHW[row].permute(1, 2, 0).flatten(), expected, atol=1e-6)


def test_all_maps_are_channels_last() -> None:
    generator, discriminator = build(config("dcgan", 64, 3, 0))
    projected = generator.project(torch.randn(2, 10), None)
    assert projected.is_contiguous(memory_format=torch.channels_last)
    image_BCHW = generator(torch.randn(2, 10))
    assert image_BCHW.is_contiguous(memory_format=torch.channels_last)
    assert discriminator.layers(image_BCHW).is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("network", FAMILIES)
def test_initial_weights_are_the_papers(network: str) -> None:
    settings = configure(network, image_size=28, channels=1, width=64, z_dim=100, num_classes=10)
    for model in build(settings):
        for module in model.modules():
            if isinstance(module, nn.Conv2d | nn.ConvTranspose2d | nn.Linear | nn.Embedding):
                count = module.weight.numel()
                assert abs(module.weight.mean()) < 5 * 0.02 / count**0.5
                assert abs(module.weight.std() / 0.02 - 1) < 5 / (2 * count) ** 0.5
            elif isinstance(module, nn.BatchNorm2d):
                assert abs(module.weight.mean() - 1) < 5 * 0.02 / len(module.weight) ** 0.5
                assert 0.01 < module.weight.std() < 0.03
            if isinstance(getattr(module, "bias", None), torch.Tensor):
                assert not module.bias.any()


def test_the_seed_decides_the_initial_weights() -> None:
    def state(seed: int) -> list[bytes]:
        torch.manual_seed(seed)
        return [
            value.numpy().tobytes()
            for model in build(config("dcgan", 28, 1, 2))
            for value in model.state_dict().values()
        ]

    assert state(1) == state(1) != state(2)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"image_size": 48}, "image_size is 48; it must be 28, 32, 64 or 128"),
        ({"image_size": 256}, "image_size is 256; it must be 28, 32, 64 or 128"),
        ({"image_size": "28"}, "image_size is '28'; it must be 28, 32, 64 or 128"),
        ({"channels": 2}, "channels is 2; it must be 1 or 3"),
        ({"channels": 4}, "channels is 4; it must be 1 or 3"),
        ({"width": 0}, "width is 0; it must be greater than or equal to 1"),
        ({"width": 513}, "width is 513; it must be less than or equal to 512"),
        ({"z_dim": 0}, "z_dim is 0; it must be greater than or equal to 1"),
        ({"z_dim": 4097}, "z_dim is 4097; it must be less than or equal to 4096"),
        ({"num_classes": -1}, "num_classes is -1; it must be greater than or equal to 0"),
        ({"num_classes": 10_001}, "num_classes is 10001; it must be less than or equal to 10000"),
    ],
)
def test_an_invalid_configuration_is_refused_with_the_field(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}$"):
        configure("dcgan", **changes)
    allowed = {"width": (1, 512), "z_dim": (1, 4096), "num_classes": (0, 10_000), "channels": (1, 3)}
    for name in changes.keys() & allowed.keys():
        for value in allowed[name]:
            assert getattr(configure("dcgan", **{name: value}), name) == value


def test_an_unknown_family_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^network is 'vae'; it must be one of dcgan, cdcgan, keras, gan$"):
        configure("vae")


def test_a_family_may_restrict_a_field() -> None:
    with pytest.raises(ValueError, match=r"^image_size is 32; it must be 28$"):
        configure("keras", image_size=32)
