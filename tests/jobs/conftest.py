"""What the system tests share beyond tests/conftest.py: one generated dataset, and an actor's one thread."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from jobs import generate


@pytest.fixture(scope="session")
def synthetic(digits_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sealed dataset of 1,000 generated digits in 4 shards. Not to be changed; copy it for that."""
    output = tmp_path_factory.mktemp("synthetic") / "synthetic"
    generate.main(
        generate.GenerateSettings(model=str(digits_run), output=str(output), count=1000, shard_size=250, workers=1)
    )
    return output


@pytest.fixture
def one_thread() -> Iterator[None]:
    """As in an actor."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
