#!/usr/bin/env python3
"""Explore a model: a linear probe and the saliency of its discriminator, and traversals of its latent space."""

if __name__ == "__main__":
    from jobs.command import signals

    signals.arm()

from jobs.command.entry import run
from jobs.exploration.settings import ExploreSettings


def main(settings: ExploreSettings) -> None:
    from jobs.exploration.main import main  # takes seconds, with Ray and torch: only once the settings are right

    main(settings)


if __name__ == "__main__":
    run(main, ExploreSettings)
