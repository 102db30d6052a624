"""Both ways to map a worker over shards keep the same promises."""

import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from jobs.cluster import actor_pool, batch_plan
from jobs.cluster.actor_pool import MAX_FAILURES, MAX_RETRIES
from jobs.cluster.connection import Pool
from jobs.cluster.failures import WorkersLostError
from jobs.cluster.shard_worker import ShardOutcome
from jobs.command.errors import UsageError

MapShards = Callable[..., Iterator[ShardOutcome]]


@pytest.fixture(
    params=[actor_pool.map_shards, pytest.param(batch_plan.map_shards, marks=pytest.mark.slow)],
    ids=["actors", "Ray Data"],
)
def map_shards(request: pytest.FixtureRequest, local_ray: None) -> MapShards:
    chosen: MapShards = request.param
    return chosen


@pytest.fixture
def pool() -> Iterator[Pool]:
    with Pool(2, 0.0) as pool:
        yield pool


def numbers(outcomes: Iterator[ShardOutcome]) -> list[int]:
    found = list(outcomes)
    assert all(outcome.result == {"twice": 2 * outcome.shard} for outcome in found if not outcome.error)
    return sorted(outcome.shard for outcome in found)


# The workers are defined in functions: Ray's processes cannot import this file.


def test_every_shard_comes_once_and_a_worker_is_made_once_an_actor(
    map_shards: MapShards, pool: Pool, tmp_path: Path
) -> None:
    class Twice:
        def __init__(self, folder: str) -> None:
            Path(folder, str(os.getpid())).touch(exist_ok=False)

        def __call__(self, shard: int) -> dict[str, Any]:
            return {"twice": 2 * shard}

    assert numbers(map_shards(Twice, {"folder": str(tmp_path)}, range(3, 40), pool)) == [*range(3, 40)]
    assert 1 <= len([*tmp_path.iterdir()]) <= 2


def test_no_shards_are_no_work(map_shards: MapShards, pool: Pool) -> None:
    assert list(map_shards(None, {}, [], pool)) == []
    assert pool.actors == []


def test_a_worker_that_dies_is_restarted_and_its_shards_are_made(
    map_shards: MapShards, pool: Pool, tmp_path: Path
) -> None:
    class Dies:
        def __init__(self, folder: str) -> None:
            self.folder = Path(folder)

        def __call__(self, shard: int) -> dict[str, Any]:
            mark = self.folder / str(shard)
            if shard % 5 == 0 and not mark.exists():
                mark.touch()
                os._exit(1)
            return {"twice": 2 * shard}

    assert numbers(map_shards(Dies, {"folder": str(tmp_path)}, range(12), pool)) == [*range(12)]


@pytest.mark.slow
def test_a_worker_that_dies_again_and_again_ends_the_job(map_shards: MapShards) -> None:
    class Dies:
        def __call__(self, shard: int) -> dict[str, Any]:
            os._exit(1)

    with Pool(1, 0.0) as one, pytest.raises(WorkersLostError, match=f"^a worker died more than {MAX_RETRIES} times: "):
        list(map_shards(Dies, {}, range(1), one))


def test_errors_are_outcomes_and_after_some_no_more_shards_start(map_shards: MapShards, pool: Pool) -> None:
    class Fails:
        def __call__(self, shard: int) -> dict[str, Any]:
            if shard % 2:
                raise UsageError(f"no {shard}") if shard % 4 == 1 else ZeroDivisionError(shard)
            return {"twice": 2 * shard}

    found = {outcome.shard: outcome for outcome in map_shards(Fails, {}, range(1000), pool)}
    assert len(found) < 100
    failed = [outcome for outcome in found.values() if outcome.error]
    assert MAX_FAILURES <= len(failed) <= MAX_FAILURES + 2 * actor_pool.IN_FLIGHT
    assert (found[1].error, found[1].trace) == ("UsageError: no 1", "")
    assert found[3].error == "ZeroDivisionError: 3"
    assert "in __call__" in found[3].trace


def test_a_worker_that_cannot_be_made_fails_its_shards(map_shards: MapShards, pool: Pool) -> None:
    class Fails:
        def __init__(self) -> None:
            raise UsageError("no worker")

        def __call__(self, shard: int) -> dict[str, Any]:
            return {}

    assert {outcome.error for outcome in map_shards(Fails, {}, range(3), pool)} == {"UsageError: no worker"}


def test_actors_that_wait_for_room_hold_no_shard(map_shards: MapShards, capsys: pytest.CaptureFixture[str]) -> None:
    """The shared Ray has 4 CPUs."""

    class Slow:
        def __call__(self, shard: int) -> dict[str, Any]:
            time.sleep(0.05)
            return {"twice": 2 * shard}

    with Pool(6, 0.0) as pool:
        assert numbers(map_shards(Slow, {}, range(30), pool)) == [*range(30)]
    assert "room for 4 of 6 workers; the others start when there is more" in capsys.readouterr().err


def test_plain_actors_stay_for_the_next_call(local_ray: None, pool: Pool) -> None:
    class Who:
        def __call__(self, shard: int) -> dict[str, Any]:
            return {"pid": os.getpid()}

    def process() -> int:
        return os.getpid()

    first = actor_pool.call(pool, process)
    [outcome] = actor_pool.map_shards(Who, {}, [0], pool)
    assert outcome.result == {"pid": first}
    assert {one.result["pid"] for one in actor_pool.map_shards(Who, {}, range(20), pool)} >= {first}


def test_what_a_called_function_raises_of_our_errors_is_raised_here(local_ray: None, pool: Pool) -> None:
    def refuse() -> None:
        raise UsageError("not this")

    with pytest.raises(UsageError, match=r"^not this$"):
        actor_pool.call(pool, refuse)
