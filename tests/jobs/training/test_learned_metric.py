"""The metric by which a run keeps its best model: learned features for colour, and the same one to its end."""

from pathlib import Path

import pytest

from jobs.training import run_store
from jobs.training.main import _learned_metric
from pipelines.storage.folder import Folder
from tests.jobs.training.test_run_store import TICK

LEARNED = "squared MMD, cubic kernel, efficientnet-lite0 (2a1b); 500 real and as many fake"
RANDOM = "squared MMD, cubic kernel, 384 features of a random convolutional network (seed 0); 2000 real"


def test_a_new_run_looks_at_colour_images_of_32_pixels_and_more(tmp_path: Path) -> None:
    run = Folder(str(tmp_path))
    assert _learned_metric(run, (64, 64, 3))
    assert not _learned_metric(run, (64, 64, 1))
    assert not _learned_metric(run, (28, 28, 3))


@pytest.mark.parametrize(("protocol", "learned"), [(LEARNED, True), (RANDOM, False)])
def test_a_run_keeps_the_metric_that_it_began_with(tmp_path: Path, protocol: str, learned: bool) -> None:
    """An earlier version's run of colour images goes on in random features, or its best model would be lost."""
    run = Folder(str(tmp_path))
    run_store.write_stats(run, [{**TICK, "protocol": protocol}])
    assert _learned_metric(run, (64, 64, 3)) is learned
