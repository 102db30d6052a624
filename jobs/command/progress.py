"""The progress of a long job: a bar on a terminal, a line every few seconds in a log, both with rate and time left."""

import sys
import time
from types import TracebackType

from tqdm import tqdm

LOG_EVERY_S = 5.0


class Progress:
    """Counts `unit`s up to `total`. Use it as a context manager. `note` is a short text behind the numbers."""

    def __init__(self, command: str, total: int, unit: str, done: int = 0) -> None:
        self._command, self._total, self._unit = command, total, unit
        self._first, self._done = done, done
        self._start = self._logged = time.monotonic()
        self._first_seen: float | None = None  # time of the first units: workers take a while to start
        self._note = ""
        self._printed: tuple[int, str] | None = None  # the numbers and note of the last line
        self._bar = None
        if sys.stderr.isatty():
            self._bar = tqdm(total=total, initial=done, desc=command, unit=f" {unit}", unit_scale=True, smoothing=0.1)

    def update(self, done: int, note: str = "") -> None:
        """Set the number of finished units."""
        if self._first_seen is None and done > self._first:
            self._first_seen, self._first = time.monotonic(), done
        self._done, self._note = done, note
        if self._bar is not None:
            self._bar.set_postfix_str(note, refresh=False)
            self._bar.update(done - self._bar.n)
        elif time.monotonic() - self._logged >= LOG_EVERY_S:
            self._logged = time.monotonic()
            self._print_line()

    def print(self, line: str) -> None:
        """Print a line of its own, above the bar where there is one."""
        if self._bar is not None:
            self._bar.write(line, file=sys.stderr)
        else:
            print(line, file=sys.stderr, flush=True)

    @property
    def seconds(self) -> float:
        """Time since the start."""
        return time.monotonic() - self._start

    @property
    def rate(self) -> float:
        """Units a second since the first were finished; 0 before."""
        return (self._done - self._first) / (time.monotonic() - self._first_seen) if self._first_seen else 0.0

    def __enter__(self) -> "Progress":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.close()
        elif kind is None and self._printed != (self._done, self._note):
            self._print_line()

    def _print_line(self) -> None:
        self._printed = (self._done, self._note)
        line = f"{self._command}: {self._done:,} of {self._total:,} {self._unit}"
        if self.rate > 0:
            left = (self._total - self._done) / self.rate
            line += f", {self.rate:,.0f} a second" + (f", {tqdm.format_interval(left)} left" if left else "")
        elif self._first_seen is None and self._done < self._total:
            line += f", starting workers ({self.seconds:.0f} s)"
        print(f"{line}; {self._note}" if self._note else line, file=sys.stderr, flush=True)
