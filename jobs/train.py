#!/usr/bin/env python3
"""Train a DCGAN with DistributedDataParallel on Ray Train workers, from a sealed dataset to a run with models."""

if __name__ == "__main__":
    from jobs.command import signals

    signals.arm()

from jobs.command.entry import run
from jobs.training.settings import TrainSettings


def main(settings: TrainSettings) -> None:
    from jobs.training.main import main  # takes seconds, with Ray and torch: only once the settings are right

    main(settings)


if __name__ == "__main__":
    run(main, TrainSettings)
