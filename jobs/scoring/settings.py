"""The settings of `jobs/score.py`."""

from typing import ClassVar, Literal

from pydantic import Field

from jobs.command.settings import ClusterSettings, Number, Url

FEWEST = 1000  # real images: a fifth of them is held out, of which half is fitted and half measured


class ScoreSettings(ClusterSettings):
    """The settings of `jobs/score.py`."""

    resumable: ClassVar[bool] = False
    command: ClassVar[str] = "score"
    about: ClassVar[str] = (
        "Train a model's discriminator on, against its generator, which stands still: its score then separates real "
        "from synthetic images. With --model it makes a model to generate with, whose images are the same; with "
        "--dataset also a file of scores beside that dataset, for curate."
    )
    examples: ClassVar[tuple[str, ...]] = (
        "jobs/score.py --model /data/run --real /data/mnist --output /data/scored",
        "jobs/score.py --dataset /data/synth --real /data/mnist --output /data/synth-scores.parquet",
    )

    model: Url | None = Field(None, description="a model or a run, whose best model is taken; default: --dataset's own")
    dataset: Url = Field("{root}/synthetic", description="without --model: the synthetic dataset; it is not changed")
    real: Url = Field(
        "{root}/real", description="real images to learn from: those of the training, or others if there are as many"
    )
    output: Url | None = Field(
        None,
        description="with --model: the new model; default: {model}-scored. Else: the scores; default: "
        "{dataset}-scores.parquet, the new model beside it",
    )
    images: Number = Field(
        50_000, ge=1000, le=10**9, description="real images to train on with, over all epochs; as many synthetic ones"
    )
    held_out: float = Field(
        0.2,
        ge=0.05,
        le=0.5,
        description="share of --real that is not learnt from: it calibrates and measures the score",
    )
    measured: Number = Field(10_000, ge=200, le=200_000, description="images of this share that are used, at most")
    seed: Number = Field(0, ge=0, le=2**32, description="seed of the order of images")
    precision: Literal["auto", "fp32", "bf16"] = Field(
        "auto", description="with --model; auto: bf16 where the hardware has it; a dataset's own otherwise"
    )
    workers: Number | None = Field(None, ge=1, le=10_000, description="actors that score; default: one a CPU")
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="auto: GPUs where there are any")
