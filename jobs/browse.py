#!/usr/bin/env python3
"""Show a sealed dataset in the browser: filter, sort, look at an image and its row, save a selection."""

if __name__ == "__main__":
    from jobs.command import signals

    signals.arm()

from jobs.browsing.settings import BrowseSettings
from jobs.command.entry import run


def main(settings: BrowseSettings) -> None:
    from jobs.browsing.main import main  # takes seconds, with DuckDB and Arrow: only once the settings are right

    main(settings)


if __name__ == "__main__":
    run(main, BrowseSettings)
