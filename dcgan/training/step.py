"""The method: one adversarial step, its state, and what is exported from it.

A step draws one latent an image, makes fakes once, updates the discriminator on the real and the fake batch (each with
its own batch statistics), then the generator through the updated discriminator. What an image contributes depends on
its position in training and the run's seed alone: no random state has to be kept to go on from a checkpoint.

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

from dcgan.families import registry
from dcgan.families.family import PLAIN, Convolutions, Discriminator, FamilyConfig, Generator
from dcgan.numerics import Arithmetic
from dcgan.sampling import latents
from dcgan.sampling.cpu_kernels import CpuConv2d, CpuConvTranspose2d
from dcgan.training import augmentation
from dcgan.training.configuration import MethodConfig, check_fit
from dcgan.training.losses import LOSSES, gradient_penalty

CPU_KERNELS = Convolutions(CpuConv2d, CpuConvTranspose2d)
# Latents by which an averaged generator is made ready for export.
SETTLING_BATCHES, SETTLING_IMAGES = 16, 128


class RealAndFake(nn.Module):
    """The discriminator on both batches in one forward: DistributedDataParallel wants one forward a backward.

    So the penalty is taken in here too, and one backward sums up all that moves a weight before ranks share it.
    """

    def __init__(self, discriminator: Discriminator, penalised: bool) -> None:
        super().__init__()
        self.discriminator, self.penalised = discriminator, penalised

    def forward(
        self, real_BCHW: Tensor, fake_BCHW: Tensor, label_B: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """The logits real_B and fake_B, and the gradient penalty where the loss has one."""
        real_B, fake_B = self.discriminator(real_BCHW, label_B), self.discriminator(fake_BCHW, label_B)
        penalty = gradient_penalty(self.discriminator, real_BCHW, fake_BCHW, label_B) if self.penalised else None
        return real_B, fake_B, penalty


class Training:
    """Networks, optimizers and the moving average of one rank, and the step that moves them.

    Ranks hold equal weights at all times; their batch statistics are their own, and rank 0's are exported.
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
        generator, discriminator = self._family.build(network, CPU_KERNELS if cpu_kernels else PLAIN)
        self.generator = generator.to(arithmetic.device)
        self.discriminator = discriminator.to(arithmetic.device)
        self.average = copy.deepcopy(self.generator).requires_grad_(False)
        if method.sync_batch_norm and world > 1:  # the average above keeps plain norms: it is what is exported
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
                 images_seen: real images that all ranks had seen before this step.
                 first, batch: where in the global batch the share begins, and that batch's size; alone: all of it.
        Returns: scalars, still on the device: `loss_d`, `loss_g`, `real_accuracy`, `fake_accuracy` (of this rank's
                 share; a critic's border is halfway between its means), `gradient_d`, `gradient_g` (lengths of the
                 gradients that all ranks share). `logits` then holds what the discriminator said of this batch.
        """
        count = len(images_BHWC)
        batch = batch or count
        first += images_seen
        # Gradients are averaged over ranks; where shares differ in size, each image is still to count alike.
        weight = count * self.world / batch
        torch.manual_seed(_mix(self.seed, first))  # for dropout, augmentation and the penalty's points
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

        self.discriminator.requires_grad_(False)  # its gradients would be thrown away
        with self.arithmetic.autocast():
            judged_B = self.discriminator(self._augment(fake_BCHW), label_B)
        loss_g = self._loss.generator(judged_B.float())
        self.generator_adam.zero_grad()
        (loss_g * weight).backward()  # type: ignore[no-untyped-call]
        self.generator_adam.step()
        self.discriminator.requires_grad_(True)

        self._update_average(images_seen // batch)
        self.logits = real_B.detach(), fake_B.detach()
        border = (real_B.mean() + fake_B.mean()).detach() / 2 if self._loss.critic else 0
        return {
            "loss_d": loss_d.detach(),
            "loss_g": loss_g.detach(),
            "real_accuracy": (real_B > border).float().mean(),
            "fake_accuracy": (fake_B < border).float().mean(),
            "gradient_d": _length(self.discriminator),
            "gradient_g": _length(self.generator),
        }

    def export(self) -> tuple[Generator, Discriminator]:
        """The averaged generator, made ready by its family, and the discriminator; copies, in eval mode.

        The generator is settled on fixed latents with balanced labels: the export is a function of the weights alone.
        """
        generator = copy.deepcopy(self.average)
        classes = self.network.num_classes
        label_B = self._to_device(np.arange(SETTLING_IMAGES) % classes) if classes else None
        with self.arithmetic.autocast():
            batches = (self._latents(n * SETTLING_IMAGES, SETTLING_IMAGES) for n in range(SETTLING_BATCHES))
            generator.settle(batches, label_B)
        _, discriminator = self._family.build(self.network)  # a plain one, whatever runs in training
        discriminator.to(self.arithmetic.device).load_state_dict(self.discriminator.state_dict())
        return generator.eval(), discriminator.eval()

    def state(self) -> dict[str, Tensor]:
        """Everything that the next step depends on, flat and by name: what a checkpoint holds."""
        state = {}
        for name, part in self._parts().items():
            state.update({f"{name}.{key}": value for key, value in part.state_dict().items()})
        for name, adam in self._adams().items():
            for number, moments in adam.state_dict()["state"].items():
                state.update({f"{name}.{number}.{key}": value for key, value in moments.items()})
        return state

    def digest(self) -> str:
        """The sha256 of all that state() holds: equal on two ranks if and only if they would go on alike."""
        found = hashlib.sha256()
        for name, value in sorted(self.state().items()):
            found.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
            found.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
        return found.hexdigest()

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Go on from `state`. Raises RuntimeError or KeyError if it belongs to other networks."""
        for name, part in self._parts().items():
            part.load_state_dict(_below(state, name))
        for name, adam in self._adams().items():
            moments: dict[int, dict[str, Tensor]] = {}
            parameters = adam.param_groups[0]["params"]
            for key, value in _below(state, name).items():
                number, _, moment = key.partition(".")
                weight = parameters[int(number)]
                # The fused step walks weights and moments as they lie in memory: both must be laid out alike.
                alike = torch.empty_like(weight).copy_(value) if value.shape == weight.shape else value
                moments.setdefault(int(number), {})[moment] = alike
            adam.load_state_dict({**adam.state_dict(), "state": moments})

    def _parts(self) -> dict[str, nn.Module]:
        return {"generator": self.generator, "discriminator": self.discriminator, "average": self.average}

    def _adams(self) -> dict[str, torch.optim.Adam]:
        return {"generator_adam": self.generator_adam, "discriminator_adam": self.discriminator_adam}

    def _augment(self, images_BCHW: Tensor) -> Tensor:
        return augmentation.augment(images_BCHW, self.method.augment)

    @torch.no_grad()
    def _clip(self) -> None:
        """Batch norms' scales too, as in the paper's own code."""
        weights: list[Tensor] = list(self.discriminator.parameters())
        torch._foreach_clamp_min_(weights, -self.method.clip)
        torch._foreach_clamp_max_(weights, self.method.clip)

    @torch.no_grad()
    def _update_average(self, step: int) -> None:
        """Exponential moving average, with a shorter memory at the start so that the initial weights fade at once."""
        decay = min(self.method.ema, (1 + step) / (10 + step))
        averaged: list[Tensor] = list(self.average.parameters())
        current: list[Tensor] = list(self.generator.parameters())
        torch._foreach_lerp_(averaged, current, 1.0 - decay)

    def _latents(self, first: int, count: int) -> Tensor:
        """z_BZ of training, on the device."""
        return self._to_device(self._family.latents(first, count, self.network.z_dim, latents.TRAINING, self.seed))

    def _to_device(self, array: np.ndarray) -> Tensor:
        tensor = torch.from_numpy(array)
        if self.arithmetic.device == "cuda":
            return tensor.pin_memory().to("cuda", non_blocking=True)
        return tensor


def _length(network: nn.Module) -> Tensor:
    """The Euclidean length of a network's gradient."""
    return torch.nn.utils.get_total_norm([weight.grad for weight in network.parameters() if weight.grad is not None])


def _below(state: Mapping[str, Tensor], name: str) -> dict[str, Any]:
    return {key.removeprefix(f"{name}."): value for key, value in state.items() if key.startswith(f"{name}.")}


def _mix(*numbers: int) -> int:
    """One 63-bit seed from several numbers, such that (0, 1) and (1, 0) differ."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> np.uint64(1))
