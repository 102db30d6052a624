"""The settings of `jobs/evaluate.py`."""

from typing import ClassVar, Literal

from pydantic import Field

from jobs.command.settings import ClusterSettings, Number, Url

FEWEST = 20  # images: four times `distances.NEIGHBOURS`, so a half has twice as many as are compared


class EvaluateSettings(ClusterSettings):
    """The settings of `jobs/evaluate.py`."""

    command: ClassVar[str] = "evaluate"
    about: ClassVar[str] = "Measure a synthetic dataset against a real one; docs/quality.md explains each number."
    examples: ClassVar[tuple[str, ...]] = (
        "jobs/evaluate.py",
        "jobs/evaluate.py --real /data/mnist --fake /data/synth --holdout /data/mnist-test --features pixels",
    )

    real: Url = Field("{root}/real", description="the real dataset, which the model was trained on")
    fake: Url = Field("{root}/synthetic", description="the synthetic dataset")
    selection: Url | None = Field(None, description="measure only these images of --fake: a file of jobs/curate.py")
    holdout: Url | None = Field(None, description="real images that the model was not trained on, as a reference")
    features: Literal["efficientnet-lite0", "pixels", "vgg16-random", "classifier", "inception"] | None = Field(
        None,
        description="the features in which images are compared; default: efficientnet-lite0 for colour images of 32 "
        "pixels and more, else vgg16-random",
    )
    inception_weights: Url | None = Field(
        None, description="safetensors file: the state dict of torchvision's inception_v3"
    )
    images: Number = Field(
        10_000,
        ge=FEWEST,
        le=200_000,
        description="images sampled from each dataset, for all measures but the Frechet distance",
    )
    classifier_images: Number = Field(
        200_000, ge=0, le=10**9, description="images that each classifier sees in training; 0: no accuracy score"
    )
    repeats: Number = Field(
        5, ge=2, le=100, description="random halves; their standard deviation is the spread of a number"
    )
    seed: Number = Field(0, ge=0, le=2**32, description="seed of the sample of images")
    output: Url | None = Field(
        None, description="where the results go; default: beside --fake or --selection, as {fake}-evaluation"
    )
    workers: Number | None = Field(None, ge=1, le=10_000, description="actors; default: one a CPU")
