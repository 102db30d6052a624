#!/usr/bin/env python3
"""Check every byte of a sealed dataset; make some of its images again and compare the pixels."""

if __name__ == "__main__":
    from jobs.command import signals

    signals.arm()

from jobs.command.entry import run
from jobs.verification.settings import VerifySettings


def main(settings: VerifySettings) -> None:
    from jobs.verification.main import main  # takes seconds, with Ray and torch: only once the settings are right

    main(settings)


if __name__ == "__main__":
    run(main, VerifySettings)
