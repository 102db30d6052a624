#!/usr/bin/env python3
"""Select images of a synthetic dataset by their discriminator logits: a small file beside it, never a copy."""

if __name__ == "__main__":
    from jobs.command import signals

    signals.arm()

from jobs.command.entry import run
from jobs.selection.settings import CurateSettings


def main(settings: CurateSettings) -> None:
    from jobs.selection.main import main  # takes seconds, with Ray and torch: only once the settings are right

    main(settings)


if __name__ == "__main__":
    run(main, CurateSettings)
