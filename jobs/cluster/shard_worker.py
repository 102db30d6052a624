"""What runs in an actor: a worker makes one shard a call, and every outcome is a value."""

import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import ray

from jobs.cluster import monitoring
from jobs.cluster.process import keep_freed_memory, one_thread
from jobs.command.errors import FAILURES, USER_ERRORS


class ShardWorker(Protocol):
    """Constructed once in an actor, then called with one shard after another. Returns JSON types."""

    def __call__(self, shard: int) -> dict[str, Any]: ...


MakeWorker = Callable[..., ShardWorker]
"""A ShardWorker's class, or a function that imports it: torch in a driver costs two seconds and 400 MB."""


@dataclass(frozen=True, slots=True)
class ShardOutcome:
    """The outcome of a shard: the worker's result, or its error."""

    shard: int
    result: dict[str, Any]
    error: str  # one line; empty on success
    trace: str  # empty on success, and for an expected error: its line says all


class ShardRunner:
    """Makes a ShardWorker at its first shard, so that its errors are reported like those of a shard."""

    def __init__(self) -> None:
        one_thread()
        keep_freed_memory()
        self._restarted = ray.get_runtime_context().was_current_actor_reconstructed
        self._made: tuple[MakeWorker, Mapping[str, Any]] | None = None
        self._worker: ShardWorker | None = None

    def run(self, make: MakeWorker, arguments: Mapping[str, Any], shard: int) -> ShardOutcome:
        """One shard, by the worker `make(**arguments)`: they come with each call, because an actor may be a new one."""
        try:
            if self._worker is None or self._made != (make, arguments):
                self._worker = None  # its memory, before the next one takes more
                self._worker, self._made = make(**arguments), (make, arguments)
                one_thread()
            if self._restarted:
                monitoring.RESTARTS.inc(1, {"worker": type(self._worker).__name__})
                self._restarted = False
            return ShardOutcome(shard, self._worker(shard), "", "")
        except Exception as problem:  # the boundary to Ray: any error is reported with its shard, and fails the job
            known = isinstance(problem, (*USER_ERRORS, *FAILURES))  # bad data or storage: the message says what to do
            trace = "" if known else traceback.format_exc()
            return ShardOutcome(shard, {}, f"{type(problem).__name__}: {problem}", trace)

    def call(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """A function's result, or its error as a value: Ray would wrap it, with a traceback in its text."""
        try:
            return function(*arguments)
        except (*USER_ERRORS, *FAILURES) as error:
            return error
