"""Two ranks over gloo, without Ray, each with a run folder: they go on from one checkpoint, or say why they cannot."""

import json
import shutil
import socket
from pathlib import Path
from typing import Any

import pytest

from dcgan.arithmetic import Arithmetic
from dcgan.training.configuration import MethodConfig
from dcgan.training.step import Training
from jobs.training import checkpoints, ranks, resume, run_store
from pipelines.storage.folder import Folder
from tests import two_ranks
from tests.jobs.training.test_run_store import NETWORK, begin, step

SCHEDULE = checkpoints.TickSchedule(NETWORK, batch=16, tick=48, total=96)
SEEN = {"same": (0, 0), "behind": (0, 32), "older": (0, 0), "another": (0, 0), "elsewhere": (0, 0), "new": (0, 0)}


def begun(place: Path, seed: int = 3, images: tuple[int, ...] = (16, 32)) -> None:
    begin(place)
    training = Training(NETWORK, MethodConfig(), Arithmetic("cpu", "float32"), seed)
    for seen in images:
        step(training, seen - 16)
        checkpoints.save(Folder(str(place)), seen, training.state(), 9)


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[dict[str, Any]]]:
    """What both ranks say in each case."""
    folder = tmp_path_factory.mktemp("ranks")
    for case in SEEN:
        for rank in (0, 1):
            begun(folder / case / str(rank), images=() if case == "new" else (16, 32))
    shutil.rmtree(folder / "behind" / "0" / "checkpoints" / f"{32:012d}")
    shutil.rmtree(folder / "older" / "1" / "checkpoints" / f"{32:012d}")
    shutil.rmtree(folder / "another" / "1")
    begun(folder / "another" / "1", seed=4)
    shutil.rmtree(folder / "elsewhere" / "1")
    two_ranks.run(rank_main, folder)
    return {case: [json.loads((folder / f"{case} {rank}.json").read_text()) for rank in (0, 1)] for case in SEEN}


def rank_main(rank: int, folder: str) -> None:
    """One rank: every case, and then three words of its own."""
    claim = run_store.claim_digest(Folder(f"{folder}/same/0"))
    for case, (_, committed) in SEEN.items():
        training = Training(NETWORK, MethodConfig(), Arithmetic("cpu", "float32"), 3, world=2)
        said = {"images": -1, "error": "", "digest": ""}
        try:
            known = resume.DriverView(claim, committed)
            chosen = resume.resume(Folder(f"{folder}/{case}/{rank}"), SCHEDULE, training, rank, known)
            said.update(images=chosen.images if chosen else 0, digest=training.digest())
        except resume.RankMismatchError as error:
            said["error"] = str(error)
        Path(folder, f"{case} {rank}.json").write_text(json.dumps(said))
    other = Training(NETWORK, MethodConfig(), Arithmetic("cpu", "float32"), seed=rank)
    with pytest.raises(resume.RankMismatchError, match=r"^rank 1 on node .* holds other weights than rank 0 on node "):
        resume.check_identical(other, Folder(folder))
    assert ranks.gather_text("né" * 3000 if rank else "") == ["", "né" * 1365 + "n"]
    assert ranks.first_text("") == ""
    assert ranks.first_text("late" if rank else "") == "late"
    assert ranks.maximum(rank - 5.0) == -4.0


@pytest.mark.slow
@pytest.mark.parametrize(("case", "images"), [("same", 32), ("new", 0)])
def test_ranks_that_see_one_run_go_on_alike(case: str, images: int, told: dict[str, list[dict[str, Any]]]) -> None:
    first, second = told[case]
    assert first["images"] == second["images"] == images
    assert first["error"] == second["error"] == ""
    assert first["digest"] == second["digest"] != ""


@pytest.mark.parametrize(
    ("case", "rank", "words"),
    [
        (
            "older",
            1,
            "00032/checkpoint.json: not found, but rank 0 resumes from the checkpoint of 32 images: ",
        ),
        ("another", 1, ": its checkpoint of 32 images differs from rank 0's: "),
        ("elsewhere", 1, "/run.json: not found, but the job wrote it: "),
        ("behind", 0, ": the newest complete checkpoint here is of 16 images, but one of 32 was committed: "),
    ],
)
def test_a_rank_that_sees_another_run_stops_all_with_one_line(
    case: str, rank: int, words: str, told: dict[str, list[dict[str, Any]]]
) -> None:
    first, second = (said["error"] for said in told[case])
    assert first == second
    assert first.startswith(f"rank {rank} on node {socket.gethostname()}: /")
    assert f"/{case}/{rank}" in first
    assert words in first
    assert "--run must be a path that every node shares, or a URL" in first
    assert "\n" not in first
