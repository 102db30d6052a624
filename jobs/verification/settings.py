"""The settings of `jobs/verify.py`."""

from typing import ClassVar, Literal

from pydantic import Field

from jobs.command.settings import ClusterSettings, Number, Url


class VerifySettings(ClusterSettings):
    """The settings of `jobs/verify.py`."""

    resumable: ClassVar[bool] = False
    command: ClassVar[str] = "verify"
    about: ClassVar[str] = (
        "Check every hash, count and index of a sealed dataset. Generated images can be made again and compared;\n"
        "ingested images can be compared with their source."
    )
    examples: ClassVar[tuple[str, ...]] = (
        "jobs/verify.py",
        "jobs/verify.py --dataset s3://bucket/faces-1m --regenerate 256",
        "jobs/verify.py --dataset s3://bucket/pictures --against ~/pictures",
    )

    dataset: Url = Field("{root}/synthetic", description="the dataset")
    regenerate: Number = Field(
        0, ge=0, le=10**7, description="number of images to make again from their manifest rows, evenly spaced"
    )
    against: str | None = Field(
        None, description="the source of an ingested dataset: compare every image and label with it"
    )
    workers: Number | None = Field(None, ge=1, le=10_000, description="actors; default: one a CPU")
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="device for images that are made again")
