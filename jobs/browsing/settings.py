"""The settings of `jobs/browse.py`."""

from typing import ClassVar

from pydantic import Field

from jobs.command.settings import JobSettings, Number, Url


class BrowseSettings(JobSettings):
    """The settings of `jobs/browse.py`."""

    resumable: ClassVar[bool] = False
    command: ClassVar[str] = "browse"
    about: ClassVar[str] = (
        "Show a sealed dataset, local or on any store, in the browser: filter and sort its images, look at one with\n"
        "its row, make it again from its seed, and save what is filtered as a selection. It serves this machine only,\n"
        "and needs the token in the address that it prints. docs/browse.md has a picture."
    )
    examples: ClassVar[tuple[str, ...]] = (
        "jobs/browse.py",
        "jobs/browse.py --dataset s3://bucket/faces-1m --real s3://bucket/faces --selection faces-top.parquet",
    )

    dataset: Url = Field("{root}/synthetic", description="the dataset; it is not changed")
    real: Url = Field("{root}/real", description="the training images, for the nearest one to an image")
    selection: Url | None = Field(None, description="a selection of the dataset's images, to filter by")
    http_port: Number = Field(0, ge=0, le=65_535, description="port on 127.0.0.1; 0: a free one")
