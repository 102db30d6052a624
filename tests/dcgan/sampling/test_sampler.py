"""An image and its logit depend on the seed and the label alone, and agree with the trained networks."""

import contextlib

import numpy as np
import pytest
import torch
from torch import nn

from dcgan import model_files
from dcgan.arithmetic import Arithmetic
from dcgan.families.family import FamilyConfig
from dcgan.families.registry import build
from dcgan.model_files import Model
from dcgan.sampling import latents, sampler
from dcgan.sampling.sampler import SampleError, Sampler
from tests.families import configure

FLOAT, BFLOAT = Arithmetic("cpu", "float32"), Arithmetic("cpu", "bfloat16")
CONFIGS = {
    "dcgan 28": configure("dcgan", image_size=28, channels=1, width=16, z_dim=100, num_classes=3),
    "dcgan 64": configure("dcgan", image_size=64, channels=3, width=8, z_dim=21),
    "cdcgan": configure("cdcgan", image_size=28, channels=1, width=4, z_dim=100, num_classes=3),
    "keras": configure("keras", image_size=28, channels=1, width=1, z_dim=100, num_classes=2),
    "gan": configure("gan", image_size=28, channels=1, z_dim=100, num_classes=2),
}
# mostly odd sizes, because kernels compute the remainder after the last full block of rows differently
BATCHES = (1, 5, 32, 33, 50)


def make(config: FamilyConfig) -> Model:
    """A model with batch norms that are not the identity, and with varied images, like a trained model."""
    torch.manual_seed(0)
    networks = build(config)
    with torch.no_grad():
        for module in (module for network in networks for module in network.modules()):
            if isinstance(module, nn.BatchNorm2d):
                assert module.running_mean is not None
                assert module.running_var is not None
                module.running_mean.normal_(0, 0.1)
                module.running_var.uniform_(0.5, 2)
                module.weight.normal_(1, 0.2)
                module.bias.normal_(0, 0.1)
            elif isinstance(module, nn.Conv2d | nn.ConvTranspose2d | nn.Linear | nn.Embedding):
                module.weight.mul_(7)
    names = [str(n) for n in range(config.num_classes)] or None
    return Model(networks[0].eval(), networks[1].eval(), names, {})


@pytest.fixture(scope="module", params=CONFIGS)
def model(request: pytest.FixtureRequest) -> Model:
    return make(CONFIGS[request.param])


def labels(model: Model, seeds: range) -> np.ndarray | None:
    return np.array(seeds, np.int64) % model.config.num_classes if model.config.num_classes else None


def unfolded(model: Model, seeds: range) -> tuple[np.ndarray, np.ndarray]:
    """Images and logits from the training networks, without folding."""
    label_N = labels(model, seeds)
    label_B = None if label_N is None else torch.from_numpy(label_N)
    z_BZ = torch.from_numpy(latents.normal(seeds.start, len(seeds), model.config.z_dim))
    with torch.inference_mode():
        image_BCHW = model.generator(z_BZ, label_B)
        levels = (image_BCHW * 127.5 + 127.5).round().clamp(0, 255)
        stored_BCHW = levels / 127.5 - 1
        logit_B = model.discriminator(stored_BCHW, label_B)
    return levels.to(torch.uint8).permute(0, 2, 3, 1).numpy(), logit_B.numpy()


def test_the_folded_networks_agree_within_a_grey_level_and_a_thousandth_of_a_logit(model: Model) -> None:
    seeds = range(40)
    made = Sampler(model, FLOAT, 32).sample(seeds, labels(model, seeds))
    images_NHWC, logits_N = unfolded(model, seeds)
    assert images_NHWC.std() > 5
    difference = np.abs(images_NHWC.astype(int) - made.images_NHWC)
    assert difference.max() <= 1  # by rounding
    assert (difference > 0).mean() < 1e-3
    # A difference of one grey level changes the logit, so logits are compared only where all pixels agree.
    same = difference.max(axis=(1, 2, 3)) == 0
    assert same.sum() > 10
    assert np.allclose(logits_N[same], made.logits_N[same], rtol=1e-3, atol=1e-4)


def test_images_are_bytes_of_the_models_shape_and_logits_are_float32(model: Model) -> None:
    size, channels = model.config.image_size, model.config.channels
    made = Sampler(model, BFLOAT, 4).sample(range(7), labels(model, range(7)))
    assert (made.images_NHWC.shape, made.images_NHWC.dtype) == ((7, size, size, channels), np.uint8)
    assert (made.logits_N.shape, made.logits_N.dtype) == ((7,), np.float32)
    assert np.isfinite(made.logits_N).all()
    assert len({image.tobytes() for image in made.images_NHWC}) == 7


@pytest.mark.parametrize(
    "arithmetic", [FLOAT, pytest.param(BFLOAT, marks=pytest.mark.slow)], ids=["float32", "bfloat16"]
)
@pytest.mark.parametrize("batch", BATCHES)
def test_an_image_and_its_logit_do_not_depend_on_the_range_or_the_batch(
    model: Model, batch: int, arithmetic: Arithmetic
) -> None:
    sampler, seeds = Sampler(model, arithmetic, batch), range(1000, 1060)
    whole = sampler.sample(seeds, labels(model, seeds))
    for start, stop in ((0, 1), (7, 8), (59, 60), (1, 60), (2, 36), (31, 33), (50, 60)):
        part = seeds[start:stop]
        made = sampler.sample(part, labels(model, part))
        assert np.array_equal(made.images_NHWC, whole.images_NHWC[start:stop]), part
        assert np.array_equal(made.logits_N, whole.logits_N[start:stop]), part


@pytest.mark.parametrize(
    "arithmetic", [FLOAT, pytest.param(BFLOAT, marks=pytest.mark.slow)], ids=["float32", "bfloat16"]
)
@pytest.mark.parametrize("batch", BATCHES)
def test_the_position_in_the_batch_does_not_matter(model: Model, batch: int, arithmetic: Arithmetic) -> None:
    z_NZ = latents.normal(7, 1, model.config.z_dim).repeat(batch, axis=0)
    label_N = np.ones(batch, np.int64) if model.config.num_classes else None
    made = Sampler(model, arithmetic, batch).decode(z_NZ, label_N)
    assert len({image.tobytes() for image in made.images_NHWC}) == 1
    assert len({logit.tobytes() for logit in made.logits_N}) == 1


def test_an_image_does_not_depend_on_its_neighbours(model: Model) -> None:
    sampler, rng = Sampler(model, FLOAT, 16), np.random.default_rng(0)
    z_NZ = latents.normal(0, 16, model.config.z_dim)
    label_N = labels(model, range(16))
    first = sampler.decode(z_NZ, label_N)
    z_NZ[1:] = 50 * rng.standard_normal(z_NZ[1:].shape)
    other = sampler.decode(z_NZ, label_N)
    assert np.array_equal(first.images_NHWC[0], other.images_NHWC[0])
    assert first.logits_N[0] == other.logits_N[0]
    assert not np.array_equal(first.images_NHWC[1:], other.images_NHWC[1:])


@pytest.mark.parametrize(
    "arithmetic", [FLOAT, pytest.param(BFLOAT, marks=pytest.mark.slow)], ids=["float32", "bfloat16"]
)
@pytest.mark.parametrize("batch", BATCHES)
def test_the_score_of_a_stored_image_is_its_logit_bit_for_bit(model: Model, batch: int, arithmetic: Arithmetic) -> None:
    sampler, seeds = Sampler(model, arithmetic, batch), range(60)
    label_N = labels(model, seeds)
    made = sampler.sample(seeds, label_N)
    assert np.array_equal(sampler.score(made.images_NHWC, label_N), made.logits_N)
    for n in (0, 1, 33, 59):
        one = sampler.score(made.images_NHWC[n : n + 1], None if label_N is None else label_N[n : n + 1])
        assert one.tolist() == [made.logits_N[n]]
    reverse = sampler.score(made.images_NHWC[::-1].copy(), None if label_N is None else label_N[::-1].copy())
    assert np.array_equal(reverse[::-1], made.logits_N)


def test_the_bits_do_not_depend_on_the_number_of_threads(model: Model) -> None:
    seeds, made = range(33), []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        samples = Sampler(model, FLOAT, 33).sample(seeds, labels(model, seeds))
        made.append((samples.images_NHWC.tobytes(), samples.logits_N.tobytes()))
    torch.set_num_threads(1)
    assert made[0] == made[1]


@pytest.mark.parametrize("kind", ["dcgan 28", "cdcgan", "keras", "gan"])
def test_each_label_decides_its_own_image(kind: str) -> None:
    model = make(CONFIGS[kind])
    sampler = Sampler(model, FLOAT, 8)
    z_NZ = latents.normal(3, 1, model.config.z_dim).repeat(2, axis=0)
    made = sampler.decode(z_NZ, np.array([0, 1]))
    swapped = sampler.decode(z_NZ, np.array([1, 0]))
    assert not np.array_equal(made.images_NHWC[0], made.images_NHWC[1])
    assert np.array_equal(made.images_NHWC, swapped.images_NHWC[::-1])
    assert np.array_equal(made.logits_N, swapped.logits_N[::-1])


def test_sampling_equals_decoding_the_latents_of_the_seeds(model: Model) -> None:
    sampler, seeds = Sampler(model, FLOAT, 8), range(2**40, 2**40 + 11)
    by_seed = sampler.sample(seeds, labels(model, seeds))
    by_latent = sampler.decode(latents.normal(2**40, 11, model.config.z_dim), labels(model, seeds))
    assert np.array_equal(by_seed.images_NHWC, by_latent.images_NHWC)
    assert np.array_equal(by_seed.logits_N, by_latent.logits_N)


@pytest.mark.parametrize(
    "arithmetic", [FLOAT, pytest.param(BFLOAT, marks=pytest.mark.slow)], ids=["float32", "bfloat16"]
)
@pytest.mark.parametrize("kind", CONFIGS)
def test_a_sampler_does_not_change_its_model(kind: str, arithmetic: Arithmetic) -> None:
    model, seeds = make(CONFIGS[kind]), range(5)
    before = model_files.pack(model)
    sampler = Sampler(model, arithmetic, 8)
    first = sampler.sample(seeds, labels(model, seeds))
    assert model_files.pack(model) == before
    assert (model.generator.training, model.discriminator.training) == (False, False)
    assert {value.dtype for value in model.generator.parameters()} == {torch.float32}
    with torch.no_grad():  # changes of the model do not affect the sampler
        for value in model.generator.parameters():
            value.zero_()
    assert np.array_equal(sampler.sample(seeds, labels(model, seeds)).images_NHWC, first.images_NHWC)


def kernel_flags() -> tuple[bool, ...]:
    cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
    return cudnn.deterministic, cudnn.allow_tf32, matmul.allow_tf32, cudnn.benchmark, cudnn.enabled


@pytest.mark.parametrize("raised", [False, True])
def test_exact_kernels_restores_the_gpu_flags(raised: bool) -> None:
    """Rank 0 samples during training. Only inside the context a GPU adds deterministically and in full float32."""
    before = kernel_flags()
    assert before[:2] == (False, True), "otherwise this test checks nothing"
    with contextlib.suppress(SampleError), sampler.exact_kernels("cuda"):
        assert kernel_flags() == (True, False, False, *before[3:])
        if raised:
            raise SampleError
    assert kernel_flags() == before


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_a_sampler_does_not_change_the_gpu_flags(device: str) -> None:
    """Without a GPU, a sampler for `cuda` fails, and the flags still stay as they were."""
    before, model = kernel_flags(), make(CONFIGS["gan"])
    with (
        contextlib.nullcontext()
        if device == "cpu" or torch.cuda.is_available()
        else pytest.raises((RuntimeError, AssertionError))
    ):
        sampler = Sampler(model, Arithmetic(device, "float32"), 8)
        assert kernel_flags() == before
        made = sampler.sample(range(5), np.zeros(5, np.int64))
        sampler.score(made.images_NHWC, np.zeros(5, np.int64))
    assert kernel_flags() == before


@pytest.mark.parametrize(
    "arithmetic", [FLOAT, pytest.param(BFLOAT, marks=pytest.mark.slow)], ids=["float32", "bfloat16"]
)
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("kind", CONFIGS)
def test_a_weight_that_is_not_finite_is_an_error_with_the_seeds(
    kind: str, value: float, arithmetic: Arithmetic
) -> None:
    """An infinity may saturate tanh. Then the image and its logit are finite, and there is no error."""
    for network, what in (("generator", "an image"), ("discriminator", "a logit")):
        model = make(CONFIGS[kind])
        weights = [v for name, v in getattr(model, network).named_parameters() if name.endswith("weight")]
        for weight in (weights[0], weights[-1]):
            kept = weight.detach().clone()
            weight.detach()[(0,) * weight.ndim] = value
            sampler, seeds = Sampler(model, arithmetic, 32), range(64, 134)
            with contextlib.suppress(SampleError) if np.isinf(value) else pytest.raises(SampleError) as caught:
                made = sampler.sample(seeds, labels(model, seeds))
                assert np.isfinite(made.logits_N).all()
            if caught is not None:
                assert str(caught.value) == (
                    f"seeds 64 to 95: {what} is not finite; train the model again, or take an earlier one"
                )
            weight.detach().copy_(kept)
