"""The settings of `jobs/show.py`."""

from typing import ClassVar

from pydantic import Field

from jobs.command.settings import JobSettings, Number, Url


class ShowSettings(JobSettings):
    """The settings of `jobs/show.py`."""

    resumable: ClassVar[bool] = False
    command: ClassVar[str] = "show"
    about: ClassVar[str] = (
        "Show a sealed dataset as one HTML page: images of each class, the best and the worst by score, the origin, "
        "and what was not taken. It runs in one process and changes nothing."
    )
    examples: ClassVar[tuple[str, ...]] = (
        "jobs/show.py",
        "jobs/show.py --dataset s3://bucket/faces --output faces.html",
    )

    dataset: Url = Field("{root}/synthetic", description="a sealed dataset, real or synthetic")
    output: Url | None = Field(None, description="the page; default: beside the dataset, as {dataset}.html")
    shards: Number = Field(
        64, ge=1, le=10**6, description="shards whose rows are read at most, evenly over the dataset"
    )
