"""Seeds to images and scores, so that an image depends on its seed and label alone.

Both networks run in eval mode, in batches of one fixed shape (the last one padded), so neither an image nor a score
depends on its neighbours. Batch norms are folded into the layers before them, once, in float32. The discriminator sees
the 8-bit image that is stored, not the float image before it: a score can be computed again from the file.

Shapes: N samples, B the fixed batch, Z latent size, H x W pixels, C channels.
"""

import copy
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from dcgan.families.networks import Layers, Projection
from dcgan.model_files import Model
from dcgan.numerics import Arithmetic
from dcgan.sampling import latents
from dcgan.sampling.cpu_kernels import assembled, subpixel_kernel

# Matrix kernels take a batch's rows in blocks and add up what is left over in another order: in a batch of 50 the last
# two images' logits differed in their last bit from what the same images got in another place (float32, AVX-512).
ROWS = 32


class SampleError(ArithmeticError):
    """Images or logits that are not finite: a model that diverged, or a processor that fails."""


@dataclass(frozen=True, slots=True)
class Samples:
    """Images and their logits, in the order of the seeds."""

    images_NHWC: np.ndarray  # uint8
    logits_N: np.ndarray  # float32


class Sampler:
    """A model made ready to run: folded, cast, and bound to one device and one batch shape.

    `batch` is rounded up to a multiple of ROWS: each place in a batch must compute alike.
    """

    def __init__(self, model: Model, arithmetic: Arithmetic, batch: int) -> None:
        self.config = model.config
        self._arithmetic, self._batch = arithmetic, -(-batch // ROWS) * ROWS
        layers = _fold([model.generator.project, *model.generator.layers[:-1]])  # the tanh is taken in float32
        self._subpixels = isinstance(layers[-1], nn.ConvTranspose2d)
        if self._subpixels:
            layers[-1] = _by_subpixels(layers[-1])
        self._generator = self._ready(layers)
        discriminator = model.discriminator
        self._features, self._head = self._ready(_fold(discriminator.layers)), self._ready(discriminator.head)
        self._classes = None if discriminator.classes is None else self._ready(discriminator.classes)

    def sample(self, seeds: range, labels_N: np.ndarray | None) -> Samples:
        """The images of consecutive seeds, and what the discriminator says of each.

        Args:   labels_N: int64, for a model with classes; None for one without.
        Raises: SampleError naming the seeds of a batch in which an image or a logit is not finite.
        """
        batches = list(self.batches(seeds, labels_N))
        images_NHWC = np.concatenate([batch.images_NHWC for batch in batches])
        return Samples(images_NHWC, np.concatenate([batch.logits_N for batch in batches]))

    def batches(self, seeds: range, labels_N: np.ndarray | None) -> Iterator[Samples]:
        """The same, batch by batch, so that one can be encoded while the next is computed."""
        z_NZ = latents.normal(seeds.start, len(seeds), self.config.z_dim)
        for start in range(0, len(z_NZ), self._batch):
            rows = slice(start, start + self._batch)
            try:
                made = self.decode(z_NZ[rows], None if labels_N is None else labels_N[rows])
            except SampleError as error:
                raise SampleError(f"seeds {seeds[rows][0]} to {seeds[rows][-1]}: {error}") from error
            yield made

    def decode(self, z_NZ: np.ndarray, labels_N: np.ndarray | None) -> Samples:
        """The images of at most one batch of latents, float32. Raises SampleError if one is not finite."""
        assert len(z_NZ) <= self._batch
        with torch.inference_mode(), exact_kernels(self._arithmetic.device):
            z_BZ = self._padded(z_NZ)
            label_B = None if labels_N is None else self._padded(labels_N)
            image_BHWC, sum_of_levels = self._images(z_BZ, label_B)
            logit_B = self._logits(image_BHWC, label_B)
            made = Samples(image_BHWC[: len(z_NZ)].cpu().numpy(), logit_B[: len(z_NZ)].cpu().numpy())
            _check("an image", sum_of_levels.cpu().numpy())
        _check("a logit", made.logits_N)
        return made

    def score(self, images_NHWC: np.ndarray, labels_N: np.ndarray | None) -> np.ndarray:
        """The logits of stored images, float32 [N]: those of `sample`, bit for bit, for the images that it made.

        Raises: SampleError if one is not finite.
        """
        logits = []
        with torch.inference_mode(), exact_kernels(self._arithmetic.device):
            for start in range(0, len(images_NHWC), self._batch):
                image_BHWC = self._padded(images_NHWC[start : start + self._batch])
                label_B = None if labels_N is None else self._padded(labels_N[start : start + self._batch])
                logits.append(self._logits(image_BHWC, label_B))
            logit_N = torch.cat(logits)[: len(images_NHWC)].cpu().numpy()
        _check("a logit", logit_N)
        return logit_N

    def _images(self, z_BZ: Tensor, label_B: Tensor | None) -> tuple[Tensor, Tensor]:
        """8-bit images, and the sum of their grey levels before the cast: NaN as uint8 is any number."""
        image_BCHW = self._generator(z_BZ.to(self._arithmetic.dtype), label_B)
        # tanh, rounding and the scale of 127.5 in float32: bfloat16 has only 8 bits itself
        levels = image_BCHW.float().tanh_().mul_(127.5).add_(127.5).round_()
        image_BHWC = levels.to(torch.uint8).permute(0, 2, 3, 1)
        return (assembled(image_BHWC) if self._subpixels else image_BHWC).contiguous(), levels.sum()

    def _logits(self, image_BHWC: Tensor, label_B: Tensor | None) -> Tensor:
        image_BCHW = (image_BHWC.permute(0, 3, 1, 2).float() / 127.5 - 1.0).to(self._arithmetic.dtype)
        features_BF = self._features(image_BCHW, label_B).permute(0, 2, 3, 1).flatten(1)
        logit_B: Tensor = self._head(features_BF).squeeze(1).float()
        if self._classes is not None:
            logit_B = logit_B + (self._classes(label_B) * features_BF).float().sum(1)
        return logit_B

    def _padded(self, rows: np.ndarray) -> Tensor:
        """To the device, in the one batch shape; the padding repeats row 0 and is cut off again by the caller."""
        if len(rows) < self._batch:
            rows = np.concatenate([rows, np.repeat(rows[:1], self._batch - len(rows), axis=0)])
        tensor = torch.from_numpy(rows)
        if self._arithmetic.device == "cuda":
            tensor = tensor.pin_memory()
        return tensor.to(self._arithmetic.device, non_blocking=True)

    def _ready(self, module: nn.Module) -> nn.Module:
        """A copy on the device, its activations in place: the model itself stays as it is."""
        device, dtype = self._arithmetic.device, self._arithmetic.dtype
        ready = copy.deepcopy(module).eval().to(device, dtype).to(memory_format=torch.channels_last)
        for layer in ready.modules():
            if isinstance(layer, nn.ReLU | nn.LeakyReLU):
                layer.inplace = True
        return ready


@contextmanager
def exact_kernels(device: str) -> Iterator[None]:
    """Have a GPU add in one order and in whole float32, inside only: the process may be one that trains."""
    if device != "cuda":
        yield
        return
    cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
    before = cudnn.deterministic, cudnn.allow_tf32, matmul.allow_tf32
    cudnn.deterministic, cudnn.allow_tf32, matmul.allow_tf32 = True, False, False
    try:
        yield
    finally:
        cudnn.deterministic, cudnn.allow_tf32, matmul.allow_tf32 = before


def _check(what: str, values: np.ndarray) -> None:
    if not np.isfinite(values).all():
        raise SampleError(f"{what} is not finite; train the model again, or take an earlier one")


def _fold(layers: Iterable[nn.Module]) -> Layers:
    """The layers without batch norms and dropout: each norm is folded into a copy of the layer before it."""
    folded: list[nn.Module] = []
    for layer in layers:
        if isinstance(layer, nn.BatchNorm2d):
            before = folded.pop()
            if isinstance(before, Projection):
                folded.append(_fold_projection(before, layer))
                continue
            assert isinstance(before, nn.Conv2d | nn.ConvTranspose2d), "a norm that follows no layer with weights"
            folded.append(fuse_conv_bn_eval(before, layer, transpose=isinstance(before, nn.ConvTranspose2d)))
        elif not isinstance(layer, nn.Dropout):
            folded.append(layer)
    return Layers(*folded)


@torch.no_grad()
def _fold_projection(project: Projection, norm: nn.BatchNorm2d) -> Projection:
    assert norm.running_var is not None
    assert norm.running_mean is not None
    scale_C = norm.weight / torch.sqrt(norm.running_var + norm.eps)
    shift_C = norm.bias - norm.running_mean * scale_C
    extent = project.shape[0] * project.shape[1]  # outputs are laid out H, W, C: channels repeat fastest
    folded = copy.deepcopy(project)
    folded.linear.weight.mul_(scale_C.repeat(extent)[:, None])
    folded.linear.bias.mul_(scale_C.repeat(extent)).add_(shift_C.repeat(extent))
    return folded


@torch.no_grad()
def _by_subpixels(layer: nn.Module) -> nn.Conv2d:
    """A transposed convolution (4x4, stride 2, padding 1) as an ordinary one, whose output `assembled` puts in place.

    With few output channels a transposed convolution runs at a twentieth of a CPU's rate.
    """
    assert isinstance(layer, nn.ConvTranspose2d)
    assert (layer.kernel_size, layer.stride, layer.padding) == ((4, 4), (2, 2), (1, 1))
    assert layer.bias is not None
    convolution = nn.Conv2d(layer.in_channels, 4 * layer.out_channels, 2, padding=1)
    convolution.weight.copy_(subpixel_kernel(layer.weight))
    assert convolution.bias is not None
    convolution.bias.copy_(layer.bias.repeat(4))
    return convolution
