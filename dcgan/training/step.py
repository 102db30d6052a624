"""The training method: one adversarial step, its state, and the export of a model.

A step draws a latent for each real image and makes the fakes once. It updates the discriminator on the real and the
fake batch, each with its own batch statistics. Then it updates the generator through the updated discriminator. Random
numbers depend on the run's seed and the position in training alone, so a checkpoint holds no random state.

Shapes: B a rank's share of the batch, H x W pixels, C channels.
"""

import copy
import hashlib
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from dcgan.arithmetic import Arithmetic
from dcgan.families import registry
from dcgan.families.family import FamilyConfig
from dcgan.families.networks import PLAIN, Convolutions, Discriminator, Generator
from dcgan.sampling import latents
from dcgan.sampling.cpu_kernels import CpuConv2d, CpuConvTranspose2d
from dcgan.training import augmentation
from dcgan.training.configuration import MethodConfig, check_fit
from dcgan.training.losses import LOSSES, gradient_penalty

CPU_KERNELS = Convolutions(CpuConv2d, CpuConvTranspose2d)
# The latents with which an averaged generator is prepared for export.
EXPORT_BATCHES, EXPORT_BATCH_SIZE = 16, 128


class RealAndFake(nn.Module):
    """The discriminator on both batches in one forward pass.

    DistributedDataParallel requires one forward pass per backward pass. So this computes the gradient penalty too, and
    one backward pass sums all gradients of a weight before the ranks average them.
    """

    def __init__(self, discriminator: Discriminator, penalised: bool) -> None:
        super().__init__()
        self.discriminator, self.penalised = discriminator, penalised

    def forward(
        self, real_BCHW: Tensor, fake_BCHW: Tensor, label_B: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """The logits real_B and fake_B, and the gradient penalty, or None if the loss has none."""
        real_B, fake_B = self.discriminator(real_BCHW, label_B), self.discriminator(fake_BCHW, label_B)
        penalty = gradient_penalty(self.discriminator, real_BCHW, fake_BCHW, label_B) if self.penalised else None
        return real_B, fake_B, penalty


class Training:
    """The networks, optimizers and moving average of one rank, and the training step.

    All ranks have equal weights at all times. Each rank has its own batch statistics; those of rank 0 are exported.
    """

    def __init__(
        self,
        network: FamilyConfig,
        method: MethodConfig,
        arithmetic: Arithmetic,
        seed: int,
        world: int = 1,
    ) -> None:
        check_fit(network, method)
        self.network, self.method, self.arithmetic = network, method, arithmetic
        self.seed, self.world = seed, world
        self._family = registry.of(network)
        torch.manual_seed(seed)
        cpu_kernels = arithmetic.device == "cpu" and not method.compile
        generator, discriminator = registry.build(network, CPU_KERNELS if cpu_kernels else PLAIN)
        self.generator = generator.to(arithmetic.device)
        self.discriminator = discriminator.to(arithmetic.device)
        self.average = copy.deepcopy(self.generator).requires_grad_(False)
        if method.sync_batch_norm and world > 1:  # the average above, which is exported, keeps plain norms
            convert: Callable[[Any], Any] = nn.SyncBatchNorm.convert_sync_batchnorm
            self.generator, self.discriminator = convert(self.generator), convert(self.discriminator)
        self.logits = torch.zeros(0), torch.zeros(0)  # of the last step's real and fake images
        self._loss = LOSSES[method.loss]
        betas, fused = (method.beta1, 0.999), True
        self.generator_adam = torch.optim.Adam(self.generator.parameters(), method.generator_lr, betas, fused=fused)
        self.discriminator_adam = torch.optim.Adam(
            self.discriminator.parameters(), method.discriminator_lr, betas, fused=fused
        )
        self._generate: nn.Module = self.generator
        self._discriminate: nn.Module = RealAndFake(self.discriminator, self._loss.penalised)
        if world > 1:
            device_ids = [torch.cuda.current_device()] if arithmetic.device == "cuda" else None
            self._generate = DistributedDataParallel(self._generate, device_ids, broadcast_buffers=False)
            self._discriminate = DistributedDataParallel(self._discriminate, device_ids, broadcast_buffers=False)
        if method.compile:
            for module in (self._generate, self._discriminate, self.discriminator):
                module.compile()

    def step(
        self, images_BHWC: np.ndarray, labels_B: np.ndarray, images_seen: int, first: int = 0, batch: int = 0
    ) -> dict[str, Tensor]:
        """One update of both networks.

        Args:    images_BHWC: this rank's share of the batch, uint8. labels_B: int64, not used without classes.
                 images_seen: number of real images that all ranks saw before this step.
                 first, batch: start of the share in the global batch, and the size of that batch; by default the share
                 is the whole batch.
        Returns: scalars, still on the device: `loss_d`, `loss_g`, `real_accuracy`, `fake_accuracy` of this rank's
                 share, and `gradient_d`, `gradient_g`, the norms of the gradients averaged over ranks. The accuracies
                 use a threshold of 0; for a critic, the midpoint of the mean real and fake logits.

        Afterwards `logits` holds the discriminator's logits of this share.
        """
        count = len(images_BHWC)
        batch = batch or count
        first += images_seen
        # Gradients are averaged over ranks. With this weight each image counts alike where shares differ in size.
        weight = count * self.world / batch
        torch.manual_seed(_combined_seed(self.seed, first))  # for dropout, augmentation and the penalty's points
        z_BZ = self._latents(first, count)
        label_B = self._to_device(labels_B) if self.network.num_classes else None
        real_BCHW = self._to_device(images_BHWC).permute(0, 3, 1, 2).float() / 127.5 - 1.0

        with self.arithmetic.autocast():
            fake_BCHW = self._generate(z_BZ, label_B)
            real_B, fake_B, penalty = self._discriminate(
                self._augment(real_BCHW), self._augment(fake_BCHW.detach()), label_B
            )
        loss_d = self._loss.discriminator(real_B.float(), fake_B.float(), self.method.label_smoothing)
        if penalty is not None:
            loss_d = loss_d + self.method.gradient_penalty * penalty
        self.discriminator_adam.zero_grad()
        (loss_d * weight).backward()  # type: ignore[no-untyped-call]
        self.discriminator_adam.step()
        if self._loss.clipped:
            self._clip()

        self.discriminator.requires_grad_(False)  # its gradients would not be used
        with self.arithmetic.autocast():
            judged_B = self.discriminator(self._augment(fake_BCHW), label_B)
        loss_g = self._loss.generator(judged_B.float())
        self.generator_adam.zero_grad()
        (loss_g * weight).backward()  # type: ignore[no-untyped-call]
        self.generator_adam.step()
        self.discriminator.requires_grad_(True)

        self._update_average(images_seen // batch)
        self.logits = real_B.detach(), fake_B.detach()
        threshold = (real_B.mean() + fake_B.mean()).detach() / 2 if self._loss.critic else 0
        return {
            "loss_d": loss_d.detach(),
            "loss_g": loss_g.detach(),
            "real_accuracy": (real_B > threshold).float().mean(),
            "fake_accuracy": (fake_B < threshold).float().mean(),
            "gradient_d": _gradient_norm(self.discriminator),
            "gradient_g": _gradient_norm(self.generator),
        }

    def export(self) -> tuple[Generator, Discriminator]:
        """Copies of the averaged generator, prepared for export, and of the discriminator, in eval mode.

        The preparation uses fixed latents and balanced labels, so the export is a function of the weights alone.
        """
        generator = copy.deepcopy(self.average)
        classes = self.network.num_classes
        label_B = self._to_device(np.arange(EXPORT_BATCH_SIZE) % classes) if classes else None
        with self.arithmetic.autocast():
            batches = (self._latents(n * EXPORT_BATCH_SIZE, EXPORT_BATCH_SIZE) for n in range(EXPORT_BATCHES))
            generator.prepare_for_export(batches, label_B)
        _, discriminator = registry.build(self.network)  # with torch's own convolutions, whichever training uses
        discriminator.to(self.arithmetic.device).load_state_dict(self.discriminator.state_dict())
        return generator.eval(), discriminator.eval()

    def state(self) -> dict[str, Tensor]:
        """All tensors on which the next step depends, by name. A checkpoint holds them."""
        state = {}
        for name, part in self._parts().items():
            state.update({f"{name}.{key}": value for key, value in part.state_dict().items()})
        for name, adam in self._adams().items():
            for number, moments in adam.state_dict()["state"].items():
                state.update({f"{name}.{number}.{key}": value for key, value in moments.items()})
        return state

    def digest(self) -> str:
        """The sha256 of state(). Two ranks have equal digests if and only if they have equal states."""
        digest = hashlib.sha256()
        for name, value in sorted(self.state().items()):
            digest.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
            digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Continue from `state`. Raises RuntimeError or KeyError if it belongs to other networks."""
        for name, part in self._parts().items():
            part.load_state_dict(_part_of(state, name))
        for name, adam in self._adams().items():
            moments: dict[int, dict[str, Tensor]] = {}
            parameters = adam.param_groups[0]["params"]
            for key, value in _part_of(state, name).items():
                number, _, moment = key.partition(".")
                weight = parameters[int(number)]
                # The fused Adam step reads weights and moments in memory order, so both need the same layout.
                aligned = torch.empty_like(weight).copy_(value) if value.shape == weight.shape else value
                moments.setdefault(int(number), {})[moment] = aligned
            adam.load_state_dict({**adam.state_dict(), "state": moments})

    def _parts(self) -> dict[str, nn.Module]:
        return {"generator": self.generator, "discriminator": self.discriminator, "average": self.average}

    def _adams(self) -> dict[str, torch.optim.Adam]:
        return {"generator_adam": self.generator_adam, "discriminator_adam": self.discriminator_adam}

    def _augment(self, images_BCHW: Tensor) -> Tensor:
        return augmentation.augment(images_BCHW, self.method.augment)

    @torch.no_grad()
    def _clip(self) -> None:
        """Clip all weights, including the scales of batch norms, as in the paper's code."""
        weights: list[Tensor] = list(self.discriminator.parameters())
        torch._foreach_clamp_min_(weights, -self.method.clip)
        torch._foreach_clamp_max_(weights, self.method.clip)

    @torch.no_grad()
    def _update_average(self, step: int) -> None:
        """Update the exponential moving average. Its decay starts low, so the initial weights fade at once."""
        decay = min(self.method.ema, (1 + step) / (10 + step))
        averaged: list[Tensor] = list(self.average.parameters())
        current: list[Tensor] = list(self.generator.parameters())
        torch._foreach_lerp_(averaged, current, 1.0 - decay)

    def _latents(self, first: int, count: int) -> Tensor:
        """z_BZ of the training stream, on the device."""
        return self._to_device(self._family.latents(first, count, self.network.z_dim, latents.TRAINING, self.seed))

    def _to_device(self, array: np.ndarray) -> Tensor:
        tensor = torch.from_numpy(array)
        if self.arithmetic.device == "cuda":
            return tensor.pin_memory().to("cuda", non_blocking=True)
        return tensor


def _gradient_norm(network: nn.Module) -> Tensor:
    """The Euclidean norm of a network's gradient."""
    return torch.nn.utils.get_total_norm([weight.grad for weight in network.parameters() if weight.grad is not None])


def _part_of(state: Mapping[str, Tensor], name: str) -> dict[str, Any]:
    """The tensors whose names start with `name` and a dot, without that prefix."""
    return {key.removeprefix(f"{name}."): value for key, value in state.items() if key.startswith(f"{name}.")}


def _combined_seed(*numbers: int) -> int:
    """One 63-bit seed from several numbers, such that (0, 1) and (1, 0) differ."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> np.uint64(1))
