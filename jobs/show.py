#!/usr/bin/env python3
"""Show a dataset as one page: its images, its scores, its origin, and what was not taken."""

if __name__ == "__main__":
    from jobs.command import signals

    signals.arm()

from jobs.command.entry import run
from jobs.presentation.settings import ShowSettings


def main(settings: ShowSettings) -> None:
    from jobs.presentation.main import main  # takes a second: only once the settings are right

    main(settings)


if __name__ == "__main__":
    run(main, ShowSettings)
