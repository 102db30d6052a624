"""Seeds to images and scores, so that an image depends on its seed and label alone.

Both networks run in eval mode, in batches of one fixed shape (the last one padded), so neither an image nor a score
depends on its neighbours. Batch norms are folded into the layers before them, once, in float32. The discriminator sees
the 8-bit image that is stored, not the float image before it: a score can be computed again from the file.

Shapes: N samples, B the fixed batch, Z latent size, H x W pixels, C channels.
"""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from dcgan.families import registry
from dcgan.model_files import Model
from dcgan.numerics import Arithmetic

# Matrix kernels take a batch's rows in blocks and add up what is left over in another order: in a batch of 50 the last
# two images' logits differed in their last bit from what the same images got in another place (float32, AVX-512).
ROWS = 32


M = TypeVar("M", bound=nn.Module)


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
        self._draw = registry.of(model.config).latents
        self._generator = self._ready(model.generator.inference())
        self._discriminator = self._ready(model.discriminator.inference())

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
        z_NZ = self._draw(seeds.start, len(seeds), self.config.z_dim)
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
        values = self._generator(z_BZ.to(self._arithmetic.dtype), label_B)
        # The activation, rounding and the scale of 127.5 in float32: bfloat16 has only 8 bits itself.
        levels = self._generator.activate(values.float()).mul_(127.5).add_(127.5).round_()
        image_BHWC = self._generator.place(levels.to(torch.uint8).permute(0, 2, 3, 1))
        return image_BHWC.contiguous(), levels.sum()

    def _logits(self, image_BHWC: Tensor, label_B: Tensor | None) -> Tensor:
        image_BCHW = (image_BHWC.permute(0, 3, 1, 2).float() / 127.5 - 1.0).to(self._arithmetic.dtype)
        logit_B: Tensor = self._discriminator(image_BCHW, label_B)
        return logit_B

    def _padded(self, rows: np.ndarray) -> Tensor:
        """To the device, in the one batch shape; the padding repeats row 0 and is cut off again by the caller."""
        if len(rows) < self._batch:
            rows = np.concatenate([rows, np.repeat(rows[:1], self._batch - len(rows), axis=0)])
        tensor = torch.from_numpy(rows)
        if self._arithmetic.device == "cuda":
            tensor = tensor.pin_memory()
        return tensor.to(self._arithmetic.device, non_blocking=True)

    def _ready(self, module: M) -> M:
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
