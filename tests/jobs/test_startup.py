"""Commands start quickly: what takes seconds to import is imported by those who need it, when they do."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from dcgan.evaluation import calibration
from dcgan.evaluation.distances import NEIGHBOURS
from jobs import generate
from jobs.evaluation.settings import FEWEST
from jobs.scoring.settings import FEWEST as FEWEST_REAL
from jobs.scoring.settings import ScoreSettings
from jobs.selection.settings import MIN_IMAGES
from tests.conftest import ROOT

COMMANDS = ("ingest", "train", "generate", "verify", "score", "curate", "evaluate", "explore", "browse", "show")
SLOW = {"torch", "ray", "pyarrow", "pandas", "cv2", "scipy", "sklearn", "webdataset", "s3fs", "torchvision", "pygal"}
# What drives workers has no use for tensors: 2 s and 400 MB.
WITHOUT_TORCH = ("ingestion", "generation", "verification", "scoring", "selection")


def loaded(code: str) -> set[str]:
    """The slow modules that code has imported, in a fresh interpreter."""
    code = f"import sys\n{code}\nprint(*{SLOW!r} & sys.modules.keys(), file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    return {*done.stderr.split()}


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_offers_its_settings_before_it_imports_anything_slow(command: str) -> None:
    assert loaded(f"import jobs.{command}") == set()


@pytest.mark.parametrize("room", WITHOUT_TORCH)
def test_a_driver_imports_no_torch_and_no_scikit_learn(room: str) -> None:
    assert loaded(f"import jobs.{room}.main") == {"ray", "pyarrow", "cv2"}


def test_a_page_of_a_dataset_needs_neither_ray_nor_torch() -> None:
    assert loaded("import jobs.presentation.main") == {"pyarrow", "cv2"}


def test_the_server_of_browse_needs_neither_ray_nor_torch_nor_pandas() -> None:
    assert loaded("import jobs.browsing.main") == {"pyarrow", "cv2"}


@pytest.mark.slow
@pytest.mark.parametrize("command", ["generate", "verify"])
def test_a_driver_has_no_torch_to_its_end_either(command: str, digits_run: Path, tmp_path: Path) -> None:
    """What workers send back may import more than the driver's own code: a pickled torch version did."""
    flags = {
        "generate": ["--model", str(digits_run), "--output", str(tmp_path / "out"), "--count", "20"],
        "verify": ["--dataset", str(tmp_path / "out"), "--regenerate", "2"],
    }
    if command == "verify":
        generate.main(generate.GenerateSettings(model=str(digits_run), output=str(tmp_path / "out"), count=20))
    script = str(ROOT / "jobs" / f"{command}.py")
    code = f"import runpy\nsys.argv = {[script, *flags[command]]}\nrunpy.run_path({script!r}, run_name='__main__')"
    assert loaded(code) & {"torch", "pandas", "sklearn", "webdataset"} == set()


def test_limits_in_settings_follow_from_the_measures_that_they_do_not_import() -> None:
    assert FEWEST == 4 * NEIGHBOURS
    assert MIN_IMAGES == 2 * calibration.FEWEST
    assert FEWEST_REAL * ScoreSettings.model_fields["held_out"].default == 2 * calibration.FEWEST


def test_a_worker_that_only_writes_shards_needs_no_torch() -> None:
    assert loaded("import jobs.ingestion.worker, jobs.cluster.shard_worker") == {"ray", "pyarrow", "cv2"}


def test_threads_that_wait_for_others_sleep() -> None:
    """On a busy machine a thread that spins takes the CPU of the one that it waits for."""
    code = (
        "import os, sys\nfrom jobs.command.entry import run\nfrom jobs.generation.settings import GenerateSettings\n"
        "sys.argv = ['generate', '--count', '0']\n"
        "try:\n    run(print, GenerateSettings)\nexcept SystemExit:\n    print(os.environ['OMP_WAIT_POLICY'])"
    )
    env = {name: value for name, value in os.environ.items() if name != "OMP_WAIT_POLICY"}
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=env, capture_output=True, text=True, check=True)
    assert done.stdout == "PASSIVE\n"
