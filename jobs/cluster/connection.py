"""Ray: start it on this machine or join a cluster, and wait for room."""

import atexit
import logging
import os
import shutil
import sys
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, Self

import ray
from ray.util.placement_group import placement_group, remove_placement_group

from jobs.cluster.failures import one_line
from jobs.cluster.process import silence_ray_core
from jobs.command import signals
from jobs.command.errors import LostWorkError, UsageError
from jobs.command.settings import WAIT_S

# If a cluster with enough nodes has no free room after this time, the user gets a line.
_BUSY_S = 5.0
# With less, Ray may not start: its first logs and sockets take some MB. Ray only reports that the start took too long.
_LEAST_FREE_BYTES = 100 << 20


@dataclass(slots=True)
class Pool:
    """The workers of a job: their number, the resources of each, and the actors that were started so far.

    As a context manager it ends them.
    """

    workers: int
    gpus_per_worker: float
    actors: list[Any] = field(default_factory=list)

    def bundle(self) -> dict[str, float]:
        """The resources of a worker, as a Ray bundle."""
        return {"CPU": 1.0, **({"GPU": self.gpus_per_worker} if self.gpus_per_worker else {})}

    def stop(self, but: Collection[Any] = ()) -> None:
        """End the actors, `but` some: something else wants their CPUs."""
        for actor in self.actors:
            if actor not in but:
                ray.kill(actor)
        self.actors = [actor for actor in self.actors if actor in but]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None or issubclass(kind, Exception):  # after a signal Ray ends with this process, without more words
            self.stop()


def connect(
    workers: int | None, device: str, gpus_per_worker: float = 1.0, verbose: bool = False, wait_s: float = WAIT_S
) -> Pool:
    """Join the cluster that RAY_ADDRESS names (a submitted job's own, for one), or start Ray on this machine.

    A process that is already connected keeps its connection. On return there is room for at least one worker.

    Args:   workers: None for as many as there is room for. wait_s: how long to wait for room in a cluster.
    Raises: LostWorkError if Ray does not start, or no cluster answers. UsageError and LostWorkError as wait_for_room.
    """
    if not ray.is_initialized():
        _start(workers or 1, verbose)
    gpus = device == "cuda" or (device == "auto" and any(node["Resources"].get("GPU") for node in nodes()))
    pool = Pool(workers or 1, gpus_per_worker if gpus else 0.0)
    wait_for_room(pool.bundle(), 1, wait_s)
    return Pool(workers or max(1, room_for(pool.bundle())), pool.gpus_per_worker)


def nodes() -> list[dict[str, Any]]:
    """The live nodes of the cluster; Ray lists dead ones too."""
    return [node for node in ray.nodes() if node["Alive"]]  # type: ignore[no-untyped-call]


def threads(workers: int) -> int:
    """CPU threads of each training worker: its share of a single node, or one on several nodes."""
    alive = nodes()
    return max(1, int(alive[0]["Resources"].get("CPU", 1)) // workers) if len(alive) == 1 else 1


def room_for(bundle: Mapping[str, float]) -> int:
    """The number of workers with this bundle that fit on the cluster's nodes, if nothing else runs on them."""
    slack = 1e-6  # 1 / 0.1 shares of a GPU are 10
    return sum(min(int(node["Resources"].get(k, 0.0) / n + slack) for k, n in bundle.items()) for node in nodes())


def wait_for_room(bundle: Mapping[str, float], workers: int, wait_s: float) -> None:
    """Wait for room for `workers` workers with this bundle. On this machine alone there is nothing to wait for.

    In a cluster an autoscaler may add nodes, and other jobs may end. A placement group does the waiting: only it asks
    an autoscaler for all bundles at once, and knows whether they are free. It is removed before the workers start; the
    nodes stay.

    Raises: UsageError if no nodes fit after `wait_s`, LostWorkError if the nodes that fit are busy.
    """
    if not os.environ.get("RAY_ADDRESS"):
        if room_for(bundle) < workers:
            raise UsageError(_no_room(bundle, workers, "this machine"))
        return
    group = placement_group([dict(bundle)] * workers)
    try:
        why = _no_room(bundle, workers, "the cluster")
        if room_for(bundle) >= workers:
            if group.wait(_BUSY_S):
                return
            why = f"{_in_words(bundle, workers)}: the cluster is busy"
        if wait_s:
            print(f"{why}; waiting {wait_s:,.0f} s for room (--wait-s)", file=sys.stderr, flush=True)
        if group.wait(wait_s):
            return
    finally:
        remove_placement_group(group)
    if room_for(bundle) < workers:
        raise UsageError(_no_room(bundle, workers, "the cluster"))
    raise LostWorkError(
        f"{_in_words(bundle, workers)}: the cluster was busy for {wait_s:,.0f} s; start the same command when it is "
        "not, or with a longer --wait-s"
    )


def _no_room(bundle: Mapping[str, float], workers: int, where: str) -> str:
    room = room_for(bundle)
    if room:
        todo = f"use --workers {room}"
    else:
        todo = "use --device cpu, or less of a GPU a worker" if "GPU" in bundle else "add a node"
    return f"{_in_words(bundle, workers)}: {where} has room for {room or 'none'}; {todo}"


def _in_words(bundle: Mapping[str, float], workers: int) -> str:
    """`2 workers of 1 CPU and 1 GPU each`."""
    resources = " and ".join(f"{n:g} {k}{'s' * (n > 1)}" for k, n in bundle.items())
    return f"a worker of {resources}" if workers == 1 else f"{workers} workers of {resources} each"


def _start(workers: int, verbose: bool) -> None:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_TRAIN_METRICS_ENABLED", "1" if os.environ.get("RAY_ADDRESS") else "0")
    quiet: dict[str, Any] = {} if verbose else {"logging_level": logging.ERROR, "log_to_driver": False}
    if not verbose:
        os.environ.setdefault("RAY_DATA_LOG_LEVEL", "CRITICAL")  # its errors are raised too, and reported in a line
        logging.getLogger("ray").setLevel(logging.ERROR)
        silence_ray_core()
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
    except Exception as error:  # of many kinds; a plain Exception if the start takes longer than 30 s
        problem, todo = "Ray did not start on this machine", "fix that, or wait until the machine is less busy"
        if address:
            problem, todo = f"no Ray cluster at RAY_ADDRESS={address}", "check the address and the token"
        else:
            todo = _short_of_disk() or todo
        reason = one_line(error).rstrip(".")
        raise LostWorkError(f"{problem}: {reason}; {todo}; then start the same command again") from error
    finally:
        signals.arm_again()  # Ray installs its own handlers
    atexit.register(ray.shutdown)  # Ray's own, which runs after this one, would sleep first


def _short_of_disk() -> str:
    """Advice if Ray's temporary folder is full, which Ray does not report; else empty."""
    # Not tempfile's choice, which avoids a full folder.
    place = os.environ.get("RAY_TMPDIR") or os.environ.get("TMPDIR") or "/tmp"
    try:
        free = shutil.disk_usage(place).free
    except OSError:
        return ""
    if free >= _LEAST_FREE_BYTES:
        return ""
    return f"{place} has {free / 1e6:,.0f} MB free: make room there, or set RAY_TMPDIR to a folder that has some"
