"""Diagnose a GAN's training from the ticks of a run: failures that raise no error, each with advice.

A symptom counts when it shows in PATIENCE ticks in a row: every run looks odd for a moment.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from dcgan.training.losses import LOSSES

Tick = Mapping[str, Any]

PATIENCE = 3  # ticks in a row
STRONG = 0.98  # share of the real, and of the fake images, that the discriminator recognises
ALIKE = 0.3  # of the real images' diversity; digits28 has 0.34 after 1,280 images and 0.85 after 19,000
STILL = 1e-4  # of a loss's size: its range over the ticks; in digits28 each moves by hundredths


def warnings(ticks: Sequence[Tick], loss: str) -> list[str]:
    """One line a symptom, with advice, in the order in which they showed. Later ticks do not change a line.

    Args: ticks: as in stats.jsonl, oldest first. loss: a name of LOSSES.
    """
    lines: dict[str, str] = {}
    for window in _windows(ticks):
        for shows, words in _DIAGNOSES:
            if words not in lines and shows(window, loss):
                span = f"from {window[0]['images']:,} to {window[-1]['images']:,} images"
                lines[words] = words.format(span=span)
    return [*lines.values()]


def _windows(ticks: Sequence[Tick]) -> Iterator[Sequence[Tick]]:
    return (ticks[start : start + PATIENCE] for start in range(len(ticks) - PATIENCE + 1))


def _discriminator_too_strong(window: Sequence[Tick], loss: str) -> bool:
    """Never for a critic: the better the critic, the better the generator's gradient."""
    if LOSSES[loss].critic:
        return False
    return all(min(tick["real_accuracy"], tick["fake_accuracy"]) >= STRONG for tick in window)


def _samples_alike(window: Sequence[Tick], loss: str) -> bool:
    return all(tick["diversity"] < ALIKE for tick in window)


def _losses_still(window: Sequence[Tick], loss: str) -> bool:
    return all(_still([tick[name] for tick in window]) for name in ("loss_d", "loss_g"))


def _still(values: list[float]) -> bool:
    return max(values) - min(values) <= max(STILL * max(map(abs, values)), 1e-9)


_DIAGNOSES: tuple[tuple[Callable[[Sequence[Tick], str], bool], str], ...] = (
    (
        _discriminator_too_strong,
        f"the discriminator is too strong: {{span}} it recognised at least {STRONG:.0%} of the real and of the fake "
        "images, which leaves the generator a weak gradient; in a new --run try a lower --discriminator-lr, "
        "--label-smoothing 0.1, --augment color,translation,cutout for a small dataset, or --loss wgan-gp "
        "where the network allows it",
    ),
    (
        _samples_alike,
        f"the samples are alike (mode collapse): {{span}} their diversity was below {ALIKE} of the real images'; "
        "look at grids/; in a new --run try lower rates, --loss hinge or wgan-gp, or a larger --batch-size",
    ),
    (
        _losses_still,
        f"both losses stand still: {{span}} they changed by less than {STILL} of their size, so the networks learn "
        "nothing; look at gradient_d and gradient_g in stats.jsonl; in a new --run try other rates, or --loss hinge",
    ),
)
