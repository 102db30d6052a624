"""Ray's failures, each in one line."""

from jobs.command.errors import LostWorkError


class WorkersLostError(LostWorkError):
    """Ray gave up: workers died again and again, or the cluster cannot run any. One line."""


def one_line(error: BaseException) -> str:
    """Ray's message, without its ids and its guesses."""
    lines = [line for line in str(error).split(" Some common causes")[0].splitlines() if line and line[0] not in "\t "]
    return " ".join(lines)[:400]
