#!/usr/bin/env python3
"""Train a model's discriminator on, so that its score separates real from synthetic images; score a dataset by it."""

if __name__ == "__main__":
    from jobs.command import signals

    signals.arm()

from jobs.command.entry import run
from jobs.scoring.settings import ScoreSettings


def main(settings: ScoreSettings) -> None:
    from jobs.scoring.main import main  # takes seconds, with Ray: only once the settings are right

    main(settings)


if __name__ == "__main__":
    run(main, ScoreSettings)
