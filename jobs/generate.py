#!/usr/bin/env python3
"""Map a trained generator over consecutive seeds, and publish the images as a sealed dataset."""

if __name__ == "__main__":
    from jobs.command import signals

    signals.arm()

from jobs.command.entry import run
from jobs.generation.settings import GenerateSettings


def main(settings: GenerateSettings) -> None:
    from jobs.generation.main import main  # takes seconds, with Ray and torch: only once the settings are right

    main(settings)


if __name__ == "__main__":
    run(main, GenerateSettings)
