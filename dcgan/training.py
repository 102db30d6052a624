"""The method: one adversarial step, its state, and what is exported from it.

A step draws one latent an image, makes fakes once, updates the discriminator on the real and the fake batch (each with
its own batch statistics), then the generator through the updated discriminator. What an image contributes depends on
its position in training and the run's seed alone: no random state has to be kept to go on from a checkpoint.

Shapes: B a rank's share of the batch, H x W pixels, C channels.
"""

import copy
import hashlib
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from dcgan import augment, latents
from dcgan.arithmetic import Arithmetic
from dcgan.convolutions import use_cpu_kernels
from dcgan.losses import LOSSES, gradient_penalty
from dcgan.networks import Discriminator, Generator, NetworkConfig, build

_Kind = tuple[torch.dtype, tuple[int, ...]]  # of a tensor

STANDING_BATCHES = 16  # batches from which the exported generator's batch statistics are taken anew


class NonFiniteError(ArithmeticError):
    """A loss, weight or measure that is NaN or infinite. Training stops: nothing after it would be worth keeping."""


@dataclass(frozen=True, kw_only=True, slots=True)
class MethodConfig:
    """The training method's own settings. Raises ValueError naming the field, its value and what is allowed."""

    loss: str = "log"
    """`log`: non-saturating log loss. `hinge`. `wgan`: Wasserstein, clipped. `wgan-gp`: Wasserstein, penalised."""
    label_smoothing: float = 0.0
    """How far the real images' target is below 1 (one-sided). 0 for Wasserstein losses, which have no target."""
    clip: float = 0.01
    """`wgan`: the bound of the discriminator's weights."""
    gradient_penalty: float = 10.0
    """`wgan-gp`: the weight of the penalty."""
    augment: str = ""
    """What is done to every image before the discriminator sees it, joined by commas: see `augment.POLICIES`."""
    generator_lr: float = 2e-4
    """Adam's rate for the generator."""
    discriminator_lr: float = 2e-4
    """Adam's rate for the discriminator."""
    beta1: float = 0.5
    """Adam's first moment decay; the second is 0.999."""
    ema: float = 0.999
    """Decay per step of the generator's exponential moving average, the weights that are exported."""
    sync_batch_norm: bool = False
    """Batch statistics over all ranks instead of each rank's own. On GPUs only."""
    compile: bool = False
    """Run both networks through torch.compile."""

    def __post_init__(self) -> None:
        if self.loss not in LOSSES:
            raise ValueError(f"loss is {self.loss!r}; it must be one of {', '.join(LOSSES)}")
        for name, low, high in (("label_smoothing", 0.0, 0.5), ("beta1", 0.0, 0.999), ("ema", 0.0, 0.99999)):
            if not low <= getattr(self, name) <= high:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be {low} to {high}")
        for name, most in (("generator_lr", 1), ("discriminator_lr", 1), ("clip", 1), ("gradient_penalty", 1000)):
            if not 0.0 < getattr(self, name) <= most:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be above 0 and at most {most}")
        if self.label_smoothing and LOSSES[self.loss].critic:
            raise ValueError(
                f"label_smoothing is {self.label_smoothing}; it must be 0 with loss {self.loss}, which has no target"
            )
        if self.compile and LOSSES[self.loss].penalised:
            raise ValueError(f"compile is set with loss {self.loss}; torch.compile has no gradients of gradients")
        if self.sync_batch_norm and LOSSES[self.loss].penalised:
            raise ValueError(
                f"sync_batch_norm is set with loss {self.loss}, whose penalty it would change: the points between real "
                "and fake images are normalised by each worker's own statistics; leave it out, or take another loss"
            )
        augment.check(self.augment)


def check_fit(network: NetworkConfig, method: MethodConfig) -> None:
    """Raises ValueError for networks that cannot learn by that method.

    The last thing before cdcgan's logits is a batch norm, which real and fake images pass in batches of their own: it
    takes away the difference of their means, which is all that a critic goes by.
    """
    if network.network == "cdcgan" and LOSSES[method.loss].critic:
        raise ValueError(
            f"loss is {method.loss}; with network cdcgan, whose last batch norm hides the difference of means that it "
            "goes by, it must be log or hinge; or take network dcgan"
        )


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
        network: NetworkConfig,
        method: MethodConfig,
        arithmetic: Arithmetic,
        seed: int,
        world: int = 1,
    ) -> None:
        check_fit(network, method)
        self.network, self.method, self.arithmetic = network, method, arithmetic
        self.seed, self.world = seed, world
        torch.manual_seed(seed)
        generator, discriminator = build(network)
        self.generator = generator.to(arithmetic.device)
        self.discriminator = discriminator.to(arithmetic.device)
        self.average = copy.deepcopy(self.generator).requires_grad_(False)
        if method.sync_batch_norm and world > 1:  # the average above keeps plain norms: it is what is exported
            convert: Callable[[Any], Any] = nn.SyncBatchNorm.convert_sync_batchnorm
            self.generator, self.discriminator = convert(self.generator), convert(self.discriminator)
        if arithmetic.device == "cpu" and not method.compile:
            use_cpu_kernels(self.generator)
            use_cpu_kernels(self.discriminator)
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
        z_BZ = self._to_device(latents.normal(first, count, self.network.z_dim, latents.TRAINING, self.seed))
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
        """The averaged generator, with batch statistics of its own, and the discriminator; copies, in eval mode.

        The running statistics of training belong to the weights of each step; those of the averaged weights are taken
        from fixed latents with balanced labels, so that the export is a function of the weights alone.
        """
        generator = copy.deepcopy(self.average)
        norms = [module for module in generator.modules() if isinstance(module, nn.BatchNorm2d)]
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum = None  # a plain mean over the batches
        generator.train()
        with torch.no_grad(), self.arithmetic.autocast():
            for batch in range(STANDING_BATCHES):
                z_BZ = latents.normal(batch * 128, 128, self.network.z_dim, latents.TRAINING, self.seed)
                label_B = np.arange(128) % self.network.num_classes if self.network.num_classes else None
                generator(self._to_device(z_BZ), None if label_B is None else self._to_device(label_B))
        for norm in norms:
            norm.momentum = 0.1
        _, discriminator = build(self.network)  # a plain one, whatever runs in training
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
        return augment.augment(images_BCHW, self.method.augment)

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

    def _to_device(self, array: np.ndarray) -> Tensor:
        tensor = torch.from_numpy(array)
        if self.arithmetic.device == "cuda":
            return tensor.pin_memory().to("cuda", non_blocking=True)
        return tensor


def check_finite(scalars: Mapping[str, float], images: int) -> None:
    """Raises NonFiniteError naming the values and how many images had been seen."""
    bad = {name: value for name, value in scalars.items() if not math.isfinite(value)}
    if bad:
        values = ", ".join(f"{name} = {value}" for name, value in bad.items())
        raise NonFiniteError(f"{values} after {images} images")


def check_weights(state: Mapping[str, Tensor], images: int) -> None:
    """Raises NonFiniteError naming the first tensor with a value that is NaN or infinite, and how many there are."""
    bad = [name for name, value in state.items() if value.is_floating_point() and not bool(value.isfinite().all())]
    if bad:
        others = f" (and {len(bad) - 1} more tensors)" if len(bad) > 1 else ""
        raise NonFiniteError(f"{bad[0]} holds values that are not finite{others} after {images} images")


def check_state(state: Mapping[str, Tensor], network: NetworkConfig) -> None:
    """Raises ValueError naming the first tensor in which `state` is not what Training.state() of `network` gives."""
    expected = _layout(network)
    for name in sorted({*expected, *state}):
        found = (state[name].dtype, tuple(state[name].shape)) if name in state else None
        if found != expected.get(name):
            raise ValueError(f"another network's: {name} is {_words(found)}, not {_words(expected.get(name))}")


def _layout(network: NetworkConfig) -> dict[str, _Kind]:
    """Every tensor of Training.state() after a step: its dtype and shape."""
    with torch.device("meta"):
        generator, discriminator = build(network)
    layout: dict[str, _Kind] = {}
    for name, part in (("generator", generator), ("discriminator", discriminator), ("average", generator)):
        layout.update({f"{name}.{key}": (value.dtype, tuple(value.shape)) for key, value in part.state_dict().items()})
    for name, part in (("generator_adam", generator), ("discriminator_adam", discriminator)):
        for number, weight in enumerate(part.parameters()):
            layout[f"{name}.{number}.step"] = (torch.float32, ())
            for moment in ("exp_avg", "exp_avg_sq"):
                layout[f"{name}.{number}.{moment}"] = (weight.dtype, tuple(weight.shape))
    return layout


def _words(kind: _Kind | None) -> str:
    return f"{kind[0]} {kind[1]}" if kind else "absent"


def _length(network: nn.Module) -> Tensor:
    """The Euclidean length of a network's gradient."""
    return torch.nn.utils.get_total_norm([weight.grad for weight in network.parameters() if weight.grad is not None])


def _below(state: Mapping[str, Tensor], name: str) -> dict[str, Any]:
    return {key.removeprefix(f"{name}."): value for key, value in state.items() if key.startswith(f"{name}.")}


def _mix(*numbers: int) -> int:
    """One 63-bit seed from several numbers, such that (0, 1) and (1, 0) differ."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> np.uint64(1))
