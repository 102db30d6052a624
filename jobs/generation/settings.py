"""The settings of `jobs/generate.py`."""

from typing import ClassVar, Literal

from pydantic import Field

from dcgan.sampling import latents
from jobs.command.settings import CardSettings, GpuShare, JobSettings, Number, Url


class GenerateSettings(CardSettings):
    """The settings of `jobs/generate.py`."""

    not_stored: ClassVar[frozenset[str]] = JobSettings.not_stored | {"gpus_per_worker", "limit_shards", "dry_run"}
    changeable: ClassVar[frozenset[str]] = frozenset({"count"})  # a larger count extends the dataset
    command: ClassVar[str] = "generate"
    about: ClassVar[str] = "Make a synthetic dataset from a trained model: image i is made from seed SEED_START + i."
    examples: ClassVar[tuple[str, ...]] = (
        "jobs/generate.py --count 1e6",
        "jobs/generate.py --model runs/faces --output s3://bucket/faces-1m --count 1e6 --workers 8",
    )

    model: Url = Field("{root}/run", description="a model, or a run, whose best model is taken")
    output: Url = Field("{root}/synthetic", description="where the dataset goes")
    count: Number = Field(ge=1, le=10**12, description="number of images, exactly")
    seed_start: Number = Field(0, ge=0, le=latents.MAX_SEED, description="seed of the first image")
    shard_size: Number = Field(10_000, ge=1, le=100_000, description="images a shard")
    classes: str = Field(
        "balanced", description="labels of a conditional model: balanced, a list as 0,1,7, or weights as 0:3,7:0.5"
    )
    image_format: Literal["png", "jpeg", "webp"] = Field("png", description="png is lossless; the others are smaller")
    quality: Number = Field(95, ge=1, le=100, description="quality of jpeg and webp")
    workers: Number | None = Field(None, ge=1, le=10_000, description="actors; default: one a GPU, or one a CPU")
    batch_size: Number = Field(128, ge=1, le=4096, description="images in one forward pass; it decides the bytes")
    precision: Literal["auto", "fp32", "bf16"] = Field("auto", description="auto: bf16 where the hardware has it")
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="auto: GPUs where there are any")
    gpus_per_worker: GpuShare = Field(1.0, description="GPUs of each actor: a share, or a whole number")
    limit_shards: Number | None = Field(None, ge=1, description="for a trial: stop after this many shards, unsealed")
    dry_run: bool = Field(False, description="print the plan, start nothing and write nothing")
