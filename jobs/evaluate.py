#!/usr/bin/env python3
"""Compare a synthetic dataset with a real one: fidelity, diversity, usefulness, and copies of training images."""

if __name__ == "__main__":
    from jobs.command import signals

    signals.arm()

from jobs.command.entry import run
from jobs.evaluation.settings import EvaluateSettings


def main(settings: EvaluateSettings) -> None:
    from jobs.evaluation.main import main  # takes seconds, with Ray and torch: only once the settings are right

    main(settings)


if __name__ == "__main__":
    run(main, EvaluateSettings)
