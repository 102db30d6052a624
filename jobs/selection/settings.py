"""The settings of `jobs/curate.py`."""

from typing import ClassVar, Literal

from pydantic import Field

from jobs.command.settings import ClusterSettings, Number, Url

MIN_IMAGES = 200  # twice `calibration.FEWEST`, which is not imported: scikit-learn takes a second


class CurateSettings(ClusterSettings):
    """The settings of `jobs/curate.py`."""

    resumable: ClassVar[bool] = False
    command: ClassVar[str] = "curate"
    about: ClassVar[str] = (
        "Select images of a synthetic dataset by their discriminator logits. The selection is a Parquet file of keys "
        "that train, evaluate and DuckDB read. docs/curate.md has measurements."
    )
    examples: ClassVar[tuple[str, ...]] = (
        "jobs/curate.py --rule top --share 0.5",
        "jobs/curate.py --rule drs --dataset /data/synth --holdout /data/mnist-test --output /data/synth-drs.parquet",
    )

    dataset: Url = Field("{root}/synthetic", description="the synthetic dataset; it is not changed")
    output: Url | None = Field(None, description="the selection; default: {dataset}-RULE.parquet")
    rule: Literal["threshold", "top", "drs"] = Field(
        description="threshold: a logit of at least --min-logit; top: the best --share of each class; "
        "drs: discriminator rejection sampling (Azadi et al. 2018)"
    )
    min_logit: float = Field(0.0, allow_inf_nan=False, description="threshold: the lowest logit that is selected")
    scores: Url | None = Field(
        None, description="select by these scores, a file of jobs/score.py, and not by the discriminator's"
    )
    share: float = Field(0.5, gt=0, le=1, description="top: the share of each class that is selected")
    holdout: Url | None = Field(
        None, description="drs: real images that the model was not trained on, to calibrate its discriminator with"
    )
    images: Number = Field(
        10_000, ge=MIN_IMAGES, le=1_000_000, description="drs: real images to calibrate with, at most"
    )
    gamma: float = Field(
        80.0, ge=0, le=100, description="drs: a percentile; a higher one selects fewer and better images"
    )
    seed: Number = Field(0, ge=0, le=2**63 - 1, description="drs: seed of the random acceptance")
    workers: Number | None = Field(None, ge=1, le=10_000, description="drs: actors; default: one a CPU")
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="drs: device that scores the real images")
