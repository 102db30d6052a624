"""The settings of `jobs/explore.py`."""

from typing import ClassVar, Literal

from pydantic import Field

from jobs.command.settings import JobSettings, Number, Url


class ExploreSettings(JobSettings):
    """The settings of `jobs/explore.py`."""

    resumable: ClassVar[bool] = False
    command: ClassVar[str] = "explore"
    about: ClassVar[str] = (
        "Explore a model, as numbers and pictures: a linear probe of its discriminator's features, the saliency of its "
        "units, and traversals of its latent space. It runs in one process on this machine's CPUs. docs/explore.md "
        "explains each picture."
    )
    examples: ClassVar[tuple[str, ...]] = (
        "jobs/explore.py",
        "jobs/explore.py --model /data/run --data /data/mnist --holdout /data/mnist-test --output /data/explored",
        "jobs/explore.py --what walks --model s3://bucket/run --data s3://bucket/faces",
    )

    model: Url = Field("{root}/run", description="a model, or a run, whose best model is taken")
    data: Url = Field("{root}/real", description="the real dataset, which the model was trained on")
    holdout: Url | None = Field(
        None, description="real images that it was not trained on: the test set of the linear probe"
    )
    output: Url | None = Field(None, description="where pictures and results go; default: {model}-explored")
    what: Literal["all", "features", "backprop", "walks"] = Field(
        "all", description="features: linear probe; backprop: unit saliency; walks: latent traversal"
    )
    images: Number = Field(
        60_000, ge=10, le=10**7, description="images of each dataset at most; all are held in memory"
    )
    labels: Number = Field(1000, ge=10, le=10**6, description="labels of the linear probe with few labels")
    repeats: Number = Field(5, ge=1, le=100, description="random draws of the few labels")
    centroids: Number = Field(400, ge=2, le=10_000, description="of the k-means features, a baseline")
    seed: Number = Field(
        0, ge=0, le=2**20, description="seed of images, labels, patches, latents and untrained weights"
    )
