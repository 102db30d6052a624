"""The settings of `jobs/train.py`."""

from importlib import resources
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, BeforeValidator, Field, ValidationError

from dcgan.configuration import fields, reason
from dcgan.families import registry
from dcgan.families.family import FamilyConfig
from dcgan.training.configuration import MethodConfig
from jobs.command.errors import UsageError
from jobs.command.settings import ClusterSettings, JobSettings, Number, Url, read_toml
from jobs.training.flags import with_fields

MAX_WORKERS = 4096


def _worker_range(value: object) -> object:
    """`4`, or `1:4`."""
    ends = [int(end) if end.isdigit() else 0 for end in str(value).split(":")]
    if value is not None and not (len(ends) <= 2 and 1 <= ends[0] <= ends[-1] <= MAX_WORKERS):
        raise ValueError(f"must be a number from 1 to {MAX_WORKERS}, or two, as 1:4")
    return value if value is None else str(value)


WorkerRange = Annotated[str, BeforeValidator(_worker_range)]


def _family(name: str) -> str:
    registry.family(name)
    return name


class _RunSettings(ClusterSettings):
    """The settings of a run, apart from its networks and its method."""

    not_stored: ClassVar[frozenset[str]] = JobSettings.not_stored | {"keep", "max_failures"}
    changeable: ClassVar[frozenset[str]] = frozenset({"images", "tick", "metric_images", "holdout"})
    command: ClassVar[str] = "train"
    about: ClassVar[str] = "Train a DCGAN on a dataset. The same command goes on where a run was interrupted."
    examples: ClassVar[tuple[str, ...]] = (
        "jobs/train.py",
        "jobs/train.py --data s3://bucket/faces --run s3://bucket/runs/faces --recipe dcgan64 --workers 8 --images 2e7",
    )

    data: Url = Field("{root}/real", description="the dataset, as jobs/ingest.py makes one")
    selection: Url | None = Field(None, description="train on these of its images only: a file of jobs/curate.py")
    holdout: Url | None = Field(
        None, description="real images that are not trained on: they calibrate the score; default: training images do"
    )
    run: Url = Field("{root}/run", description="where the run goes: checkpoints, pictures, models")
    recipe: str = Field("digits28", description="digits28, dcgan64, emoji64, gan28, keras28, or a TOML file")
    images: Number = Field(300_000, ge=1, le=10**12, description="real images to train on in all, over all epochs")
    workers: WorkerRange | None = Field(
        None,
        description="DDP ranks; 1:4 for as many as there is room for, also later; default: one a GPU or CPU up to 2",
    )
    batch_size: Number = Field(128, ge=2, le=65_536, description="images a step, over all workers")
    tick: Number = Field(20_000, ge=1, description="images between checkpoints, pictures and measurements")
    keep: Number = Field(3, ge=1, le=1000, description="checkpoints that are kept")
    seed: Number = Field(0, ge=0, le=2**63 - 1, description="of weights, order and latents")
    shuffle: Number = Field(16_384, ge=1, le=10**7, description="images that are shuffled at a time")
    metric_images: Number = Field(
        2000,
        ge=100,
        le=50_000,
        description="real and fake images that a model is measured by; in learned features at most 250",
    )
    precision: Literal["auto", "fp32", "bf16"] = Field("auto", description="auto: bf16 where the hardware has it")
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="auto: GPUs where there are any")
    max_failures: Number = Field(3, ge=0, le=1000, description="how often workers may die before the job does")

    network: Annotated[str, AfterValidator(_family)] = Field(
        registry.DEFAULT, description=f"family of networks: {', '.join(registry.FAMILIES)}"
    )
    conditional: bool = Field(False, description="condition both networks on the dataset's classes")


class TrainSettings(
    with_fields(_RunSettings, {**registry.all_fields(), **fields(MethodConfig)})  # type: ignore[misc]  # made at run time
):
    """What `jobs/train.py` takes: the run's settings, those of every family of networks, and the method's."""

    @property
    def bounds(self) -> tuple[int, int] | None:
        """The fewest and the most workers; None for the default."""
        ends = [int(end) for end in (self.workers or "").split(":") if end]
        return (ends[0], ends[-1]) if ends else None

    @classmethod
    def preset(cls, values: dict[str, Any]) -> dict[str, Any]:
        recipe = str(values.get("recipe", cls.model_fields["recipe"].default))
        packaged = resources.files("jobs") / "recipes"
        names = sorted(file.name.removesuffix(".toml") for file in packaged.iterdir() if file.name.endswith(".toml"))
        if recipe.endswith(".toml"):
            return read_toml(cls, Path(recipe))
        if recipe not in names:
            raise UsageError(f"--recipe {recipe}: there is {', '.join(names)}; or give a TOML file")
        with resources.as_file(packaged / f"{recipe}.toml") as path:
            return read_toml(cls, path)

    def networks(self, classes: list[str] | None) -> FamilyConfig:
        """The networks' configuration. Raises ValueError for a value that the family does not allow."""
        own = fields(registry.family(self.network).config)
        values = {name: getattr(self, name) for name in own if name != "num_classes"}
        return registry.configure(self.network, {**values, "num_classes": len(classes or []) * self.conditional})

    def method(self) -> MethodConfig:
        """The method's configuration. Raises ValueError for values that do not go together."""
        try:
            return MethodConfig(**{name: getattr(self, name) for name in fields(MethodConfig)})
        except ValidationError as error:
            raise ValueError(reason(error)) from error
