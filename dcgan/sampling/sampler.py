"""The map from seeds to images and logits. An image depends on its seed and label alone.

Both networks run in eval mode, in batches of one fixed shape; the last batch is padded. So neither an image nor a logit
depends on its neighbours. Batch norms are folded into the layers before them, once, in float32. The discriminator
scores the 8-bit image that is stored, not the float image before rounding, so a logit can be recomputed from the stored
file.

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

from dcgan.arithmetic import Arithmetic
from dcgan.families import registry
from dcgan.model_files import Model

# Matrix kernels process the rows of a batch in blocks, and add in another order in the remainder. In a batch of 50 the
# logits of the last two images differed in their last bit from those of the same images at other positions (float32,
# AVX-512).
BATCH_MULTIPLE = 32


M = TypeVar("M", bound=nn.Module)


class SampleError(ArithmeticError):
    """An image or a logit is not finite: the model diverged, or the processor fails."""


@dataclass(frozen=True, slots=True)
class Samples:
    """Images and their logits, in the order of the seeds."""

    images_NHWC: np.ndarray  # uint8
    logits_N: np.ndarray  # float32


class Sampler:
    """A model prepared for inference: folded, cast, and bound to one device and one batch shape.

    `batch` is rounded up to a multiple of BATCH_MULTIPLE: the result must not depend on the position in the batch.
    """

    def __init__(self, model: Model, arithmetic: Arithmetic, batch: int) -> None:
        self.config = model.config
        self._arithmetic, self._batch = arithmetic, -(-batch // BATCH_MULTIPLE) * BATCH_MULTIPLE
        self._draw = registry.of(model.config).latents
        self._generator = self._prepare(model.generator.inference())
        self._discriminator = self._prepare(model.discriminator.inference())

    def sample(self, seeds: range, labels_N: np.ndarray | None) -> Samples:
        """The images of consecutive seeds and their logits.

        Args:   labels_N: int64 for a model with classes, else None.
        Raises: SampleError, with the seeds of the batch, if an image or a logit is not finite.
        """
        batches = list(self.batches(seeds, labels_N))
        images_NHWC = np.concatenate([batch.images_NHWC for batch in batches])
        return Samples(images_NHWC, np.concatenate([batch.logits_N for batch in batches]))

    def batches(self, seeds: range, labels_N: np.ndarray | None) -> Iterator[Samples]:
        """As `sample`, batch by batch, so the caller can encode one batch while the next is computed."""
        z_NZ = self._draw(seeds.start, len(seeds), self.config.z_dim)
        for start in range(0, len(z_NZ), self._batch):
            rows = slice(start, start + self._batch)
            try:
                samples = self.decode(z_NZ[rows], None if labels_N is None else labels_N[rows])
            except SampleError as error:
                raise SampleError(f"seeds {seeds[rows][0]} to {seeds[rows][-1]}: {error}") from error
            yield samples

    def decode(self, z_NZ: np.ndarray, labels_N: np.ndarray | None) -> Samples:
        """The images and logits of at most one batch of float32 latents.

        Raises: SampleError if an image or a logit is not finite.
        """
        assert len(z_NZ) <= self._batch
        with torch.inference_mode(), exact_kernels(self._arithmetic.device):
            z_BZ = self._padded(z_NZ)
            label_B = None if labels_N is None else self._padded(labels_N)
            image_BHWC, sum_of_levels = self._images(z_BZ, label_B)
            logit_B = self._logits(image_BHWC, label_B)
            samples = Samples(image_BHWC[: len(z_NZ)].cpu().numpy(), logit_B[: len(z_NZ)].cpu().numpy())
            _check("an image", sum_of_levels.cpu().numpy())
        _check("a logit", samples.logits_N)
        return samples

    def score(self, images_NHWC: np.ndarray, labels_N: np.ndarray | None) -> np.ndarray:
        """logit_N, float32, of stored images. For the images of `sample` they equal its logits bit for bit.

        Raises: SampleError if a logit is not finite.
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
        """8-bit images, and the sum of their levels before the cast. NaN is undefined as uint8; the sum keeps it."""
        values = self._generator(z_BZ.to(self._arithmetic.dtype), label_B)
        # The activation, the scaling by 127.5 and the rounding run in float32: bfloat16 has only 8 bits of precision.
        levels = self._generator.activate(values.float()).mul_(127.5).add_(127.5).round_()
        image_BHWC = self._generator.place(levels.to(torch.uint8).permute(0, 2, 3, 1))
        return image_BHWC.contiguous(), levels.sum()

    def _logits(self, image_BHWC: Tensor, label_B: Tensor | None) -> Tensor:
        image_BCHW = (image_BHWC.permute(0, 3, 1, 2).float() / 127.5 - 1.0).to(self._arithmetic.dtype)
        logit_B: Tensor = self._discriminator(image_BCHW, label_B)
        return logit_B

    def _padded(self, rows: np.ndarray) -> Tensor:
        """The rows on the device, padded to the batch shape with copies of row 0. The caller cuts the padding off."""
        if len(rows) < self._batch:
            rows = np.concatenate([rows, np.repeat(rows[:1], self._batch - len(rows), axis=0)])
        tensor = torch.from_numpy(rows)
        if self._arithmetic.device == "cuda":
            tensor = tensor.pin_memory()
        return tensor.to(self._arithmetic.device, non_blocking=True)

    def _prepare(self, module: M) -> M:
        """A copy of the module on the device, with in-place activations. The model stays unchanged."""
        device, dtype = self._arithmetic.device, self._arithmetic.dtype
        prepared = copy.deepcopy(module).eval().to(device, dtype).to(memory_format=torch.channels_last)
        for layer in prepared.modules():
            if isinstance(layer, nn.ReLU | nn.LeakyReLU):
                layer.inplace = True
        return prepared


@contextmanager
def exact_kernels(device: str) -> Iterator[None]:
    """A context in which a GPU adds in a deterministic order and in full float32.

    Afterwards the flags are restored, because the process may be training.
    """
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
