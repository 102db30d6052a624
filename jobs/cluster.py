"""Ray: start it here or join the cluster at hand, and map a worker over shards in a pool of actors.

One row of the plan is one shard: a worker makes and writes it whole, and what comes back is a few numbers. No image
goes through the object store, and no second operator waits behind the pool for a CPU that the pool holds.
"""

import ctypes
import json
import logging
import os
import subprocess
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import ray
import torch
from ray.exceptions import RayActorError, RayError
from ray.util.annotations import RayDeprecationWarning

from dcgan import arithmetic
from dcgan.arithmetic import Arithmetic
from jobs import monitoring
from jobs.settings import LostWorkError, UsageError
from pipelines.dataset import CorruptError
from pipelines.sources import SourceError

DAMAGE = (CorruptError, SourceError)  # of data that a worker read
# Blocks are the plan's unit of scheduling; more of them cost the driver memory, fewer cost the user progress.
MAX_BLOCKS = 10_000
# A poisoned shard shall not hide the good ones behind it; a poisoned job shall not go on for a million shards.
MAX_FAILURES = 8
# Infrastructure (a killed worker, a lost node) is tried again; our own exceptions never are. A worker may be started
# anew this often: one that dies each time ends the job.
MAX_RETRIES = 8
# A call to a worker that does not answer. 8 such calls take 15 s, and as long can it take Ray to find that a node is
# lost; one that hangs, a minute. So this is no bound on deaths.
MAX_TASK_RETRIES = 50
# A machine with a GPU takes some minutes to come, and more to fetch an image of 10 GB.
GPU_WAIT_S = 900.0
# glibc's names for what mallopt sets: from malloc.h.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3


class WorkersLostError(LostWorkError):
    """Ray gave up: workers died again and again, or the cluster cannot run any. One line."""


class ShardWorker(Protocol):
    """What runs in an actor: built there once, then called with one shard after another. Answers in JSON's types."""

    def __call__(self, shard: int) -> dict[str, Any]: ...


@dataclass(frozen=True, slots=True)
class Done:
    """What became of a shard: the worker's result, or the error that it ended with."""

    shard: int
    result: dict[str, Any]
    error: str  # empty if it went well; else one line
    trace: str  # empty also where the line says all: data is damaged


@dataclass(frozen=True, slots=True)
class Pool:
    """The workers of a job: how many, and what each holds."""

    workers: int
    gpus_per_worker: float


def connect(workers: int | None, device: str, gpus_per_worker: float = 1.0, verbose: bool = False) -> Pool:
    """Join the cluster that RAY_ADDRESS names (a submitted job's own, for one), or start Ray on this machine.

    A process that is connected already stays so.

    Args:   workers: None for one a GPU, or one a CPU where there is no GPU.
    Raises: LostWorkError if Ray does not start, or no cluster answers. UsageError for a GPU that is not there.
    """
    if not ray.is_initialized():
        _start(workers or 1, verbose)
    ray.data.DataContext.get_current().enable_progress_bars = verbose
    resources = ray.cluster_resources()  # type: ignore[no-untyped-call]
    gpus = resources.get("GPU", 0.0) if device != "cpu" else 0.0
    if device == "cuda" and not gpus:
        gpus = _first_gpu()
    gpus_per_worker = gpus_per_worker if gpus else 0.0
    default = int(gpus / gpus_per_worker) if gpus else int(resources.get("CPU", 1))
    return Pool(workers or max(1, default), gpus_per_worker)


def _first_gpu() -> float:
    """How many GPUs a cluster has once an autoscaler has brought one: it may have scaled to none.

    Raises: UsageError if none comes within GPU_WAIT_S, or this Ray was started here.
    """
    if os.environ.get("RAY_ADDRESS"):
        print(f"--device cuda: the cluster has no GPU; waiting {GPU_WAIT_S:.0f} s for one", file=sys.stderr, flush=True)

        def nothing() -> None: ...

        came, _ = ray.wait([ray.remote(num_gpus=1, num_cpus=0)(nothing).remote()], timeout=GPU_WAIT_S)
        if came:
            return float(ray.cluster_resources()["GPU"])  # type: ignore[no-untyped-call]
    raise UsageError("--device cuda: the cluster has no GPU; use --device cpu or auto")


def _start(workers: int, verbose: bool) -> None:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_TRAIN_METRICS_ENABLED", "1" if os.environ.get("RAY_ADDRESS") else "0")
    quiet: dict[str, Any] = {} if verbose else {"logging_level": logging.ERROR, "log_to_driver": False}
    if not verbose:
        os.environ.setdefault("RAY_DATA_LOG_LEVEL", "CRITICAL")  # its errors are raised too, and told in a line
        logging.getLogger("ray").setLevel(logging.ERROR)
        _quiet_core()
    address = os.environ.get("RAY_ADDRESS")
    try:
        if address:
            ray.init(**quiet)
        else:
            ray.init(
                address="local",
                num_cpus=max(os.cpu_count() or 1, workers),  # more workers than cores are slow, not impossible
                object_store_memory=256 << 20,
                include_dashboard=False,
                **quiet,
            )
    except Exception as error:  # of many kinds; where its start takes longer than its 30 s, a plain Exception
        what, todo = "Ray did not start on this machine", "mend that, or wait until the machine is less busy"
        if address:
            what, todo = f"no Ray cluster at RAY_ADDRESS={address}", "check the address and the token"
        why = in_a_line(error).rstrip(".")
        raise LostWorkError(f"{what}: {why}; {todo}; then start the same command again") from error


def _quiet_core() -> None:
    """Leave stderr to Python. Ray's C++ core writes there too, at each pool an error that is none (ray#57733)."""
    sys.stderr.flush()
    ours = os.dup(2)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    sys.stderr = os.fdopen(ours, "w", buffering=1)


def probe(
    pool: Pool,
    precision: str,
    fingerprint: Callable[[Arithmetic], dict[str, str]] = arithmetic.fingerprint,
) -> tuple[Arithmetic, dict[str, str]]:
    """What a worker of the pool computes with, and its fingerprint: the driver's machine may be another kind."""

    def look() -> tuple[Arithmetic, dict[str, str]]:
        chosen = arithmetic.choose(precision, "cuda" if pool.gpus_per_worker else "cpu")
        return chosen, fingerprint(chosen)

    if len(ray.nodes()) == 1 and not pool.gpus_per_worker:  # type: ignore[no-untyped-call]
        return look()  # workers run on this machine, and starting one takes seconds
    found: tuple[Arithmetic, dict[str, str]] = ray.get(
        ray.remote(num_cpus=1, num_gpus=pool.gpus_per_worker)(look).remote()
    )
    return found


def map_shards(
    worker: type[ShardWorker], arguments: Mapping[str, Any], shards: Sequence[int], pool: Pool
) -> Iterator[Done]:
    """Run `worker(**arguments)` over shards in a pool of actors; yields each as it is done, in no order.

    A worker's own exception ends its shard, not the others; after MAX_FAILURES of them no more are started.

    Raises: WorkersLostError after MAX_RETRIES deaths of a worker, or for any other error of Ray's own.
    """
    if not shards:
        return
    items = [{"shard": shard} for shard in shards]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RayDeprecationWarning)  # up to 2.63 there is no other way to bound restarts
        plan = ray.data.from_items(items, override_num_blocks=min(len(items), MAX_BLOCKS)).map_batches(
            _Actor,
            fn_constructor_args=(worker, dict(arguments)),
            batch_size=1,
            compute=ray.data.ActorPoolStrategy(size=min(pool.workers, len(items)), max_tasks_in_flight_per_actor=2),
            num_cpus=1,
            num_gpus=pool.gpus_per_worker,
            max_restarts=MAX_RETRIES,
            max_task_retries=MAX_TASK_RETRIES,
        )
    failures = 0
    rows = iter(plan.iter_rows())
    while failures < MAX_FAILURES:
        try:
            row = next(rows, None)
        except RayError as error:
            what = f"a worker died more than {MAX_RETRIES} times" if isinstance(error, RayActorError) else "Ray failed"
            raise WorkersLostError(f"{what}: {in_a_line(error)}") from error
        if row is None:
            return
        yield Done(row["shard"], json.loads(row["result"]), row["error"], row["trace"])
        failures += bool(row["error"])


def in_a_line(error: BaseException) -> str:
    """What Ray says, without its ids and its guesses."""
    lines = [line for line in str(error).split(" Some common causes")[0].splitlines() if line and line[0] not in "\t "]
    return " ".join(lines)[:400]


@contextmanager
def last_words(text: str) -> Iterator[None]:
    """Have `text` on stderr if this process ends inside without a word of its own.

    Ray's core leaves by _exit(1) when the cluster is gone, and the kernel's OOM killer says nothing either. So a shell
    waits for a line from here, or for the end of its pipe.
    """
    try:
        stderr: int | None = sys.stderr.fileno()
    except OSError:  # not a file: a test's
        stderr = None
    command = ["/bin/sh", "-c", 'read -r over || printf "%s\\n" "$1" >&2', "sh", text]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stderr=stderr) as shell:
        try:
            yield
        finally:
            with suppress(OSError):  # Ctrl-C ends it too
                shell.communicate(b"over\n")


def keep_freed_memory() -> None:
    """Have glibc's malloc keep what this process frees, up to 1 GB.

    Else the memory of each batch's activations goes back to the kernel, and 6,000 to 20,000 page faults a thousand
    images bring it in again: a tenth to a fifth of the time, measured at 28x28.
    """
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):  # not on macOS, nor with musl
        libc.mallopt(_M_MMAP_THRESHOLD, 32 << 20)  # the largest that it takes
        libc.mallopt(_M_TRIM_THRESHOLD, 1 << 30)


class _Actor:
    """Makes a ShardWorker at its first shard, so that what goes wrong there is told like anything else."""

    def __init__(self, worker: type[ShardWorker], arguments: dict[str, Any]) -> None:
        torch.set_num_threads(1)  # one core a worker; and sums in one order, whatever the machine has
        keep_freed_memory()
        if ray.get_runtime_context().was_current_actor_reconstructed:
            monitoring.RESTARTS.inc(1, {"worker": worker.__name__})
        self._worker, self._arguments = worker, arguments
        self._ready: ShardWorker | None = None

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, Any]:
        shard = int(batch["shard"][0])
        result: dict[str, Any] = {}
        error = trace = ""
        try:
            self._ready = self._ready or self._worker(**self._arguments)
            result = self._ready(shard)
        except Exception as problem:  # the boundary to Ray: whatever it was, it is told by shard and fails the job
            error = f"{type(problem).__name__}: {problem}"
            trace = "" if isinstance(problem, DAMAGE) else traceback.format_exc()
        return {"shard": [shard], "result": [json.dumps(result)], "error": [error], "trace": [trace]}
