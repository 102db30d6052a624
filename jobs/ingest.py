#!/usr/bin/env python3
"""Turn images from anywhere into a sealed dataset."""

if __name__ == "__main__":
    from jobs.command import signals

    signals.arm()

from jobs.command.entry import run
from jobs.ingestion.settings import IngestSettings


def main(settings: IngestSettings) -> None:
    from jobs.ingestion.main import main  # takes seconds, with Ray and torch: only once the settings are right

    main(settings)


if __name__ == "__main__":
    run(main, IngestSettings)
