"""What the system tests share beyond tests/conftest.py: one generated dataset."""

from pathlib import Path

import pytest

from jobs import generate


@pytest.fixture(scope="session")
def synthetic(digits_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sealed dataset of 1,000 generated digits in 4 shards. Not to be changed; copy it for that."""
    output = tmp_path_factory.mktemp("synthetic") / "synthetic"
    generate.main(
        generate.GenerateSettings(model=str(digits_run), output=str(output), count=1000, shard_size=250, workers=1)
    )
    return output
