"""Train a discriminator on, after the training, against the exported generator, which stands still.

During training both networks move: a discriminator judges the generator's weights of one step, not the average that is
exported, and near the equilibrium it knows little. Its batch norms see real and fake images apart, and so hide what
differs in their means. Here real and fake images share a batch, and the batch statistics stay those of the export. So
the discriminator learns in the very form in which it scores, and its logit estimates the log of p_real / p_fake.

Source: Azadi et al. 2018, arXiv:1810.06758, sec. 3.2 (the discriminator is trained on before rejection sampling);
Grover et al. 2019, arXiv:1906.09531 (the ratio as a weight).

Shapes: B images of a batch of each kind, H x W pixels, C channels.
"""

import copy
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from dcgan.arithmetic import Arithmetic
from dcgan.families.networks import Discriminator

HALF = 64  # real images of a batch, and fakes
LEARNING_RATE = 4e-4
PROTOCOL = (
    f"the model's discriminator, trained on with fixed batch statistics: cross-entropy, batches of {HALF} "
    f"real and {HALF} synthetic images of the same classes; Adam (0.5, 0.999), {LEARNING_RATE:g} down to 0 by a cosine"
)
Batch = tuple[np.ndarray, np.ndarray, np.ndarray]


def train_on(
    discriminator: Discriminator, batches: Iterator[Batch], steps: int, arithmetic: Arithmetic
) -> Discriminator:
    """A copy of the discriminator after `steps` more steps, in eval mode, in float32.

    Args: batches: real_BHWC and fake_BHWC, uint8, and label_B, int64, of both; at least `steps` of them. arithmetic: as
          in training.
    """
    trained: Discriminator = copy.deepcopy(discriminator).eval().to(arithmetic.device)
    trained.to(memory_format=torch.channels_last)
    adam = torch.optim.Adam(trained.parameters(), LEARNING_RATE, (0.5, 0.999), fused=True)
    rate = torch.optim.lr_scheduler.CosineAnnealingLR(adam, steps)
    for _ in range(steps):
        real_BHWC, fake_BHWC, label_B = next(batches)
        image_BCHW = _images(np.concatenate([real_BHWC, fake_BHWC]), arithmetic.device)
        joined_B = torch.from_numpy(np.tile(label_B, 2)).to(arithmetic.device) if trained.config.num_classes else None
        target_B = torch.repeat_interleave(torch.tensor([1.0, 0.0], device=arithmetic.device), len(real_BHWC))
        with arithmetic.autocast():
            logit_B = trained(image_BCHW, joined_B)
        loss = binary_cross_entropy_with_logits(logit_B.float(), target_B)
        adam.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        adam.step()
        rate.step()
    return trained.to("cpu")


def _images(images_BHWC: np.ndarray, device: str) -> Tensor:
    return torch.from_numpy(images_BHWC).to(device).permute(0, 3, 1, 2).float() / 127.5 - 1.0
