"""The description of a training that the driver sends to each worker."""

from dataclasses import dataclass
from typing import Any

from dcgan.arithmetic import Arithmetic
from dcgan.families.family import FamilyConfig
from dcgan.training.configuration import MethodConfig
from jobs.training.checkpoints import TickSchedule
from pipelines.loading.order import Plan


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainingJob:
    """The settings of one training."""

    data: str
    """URL of the dataset."""
    selection: str | None
    """URL of the selection of its images, if there is one."""
    holdout: str | None
    """URL of the real images that calibrate the score, if they are not those of `data`."""
    run: str
    """URL of the run's directory."""
    network: FamilyConfig
    method: MethodConfig
    plan: Plan
    """The order of the images."""
    arithmetic: Arithmetic
    total: int
    """Images to train on, a multiple of the batch size."""
    tick: int
    """Images a tick."""
    keep: int
    """Checkpoints that are kept."""
    metric_images: int
    """Real and fake images that a model is measured by."""
    learned_metric: bool
    """Whether it is measured in learned features."""
    threads: int
    """CPU threads a worker."""
    provenance: dict[str, Any]
    """Facts that each model of the run carries."""
    claim: str
    """sha256 of run.json, as the driver sees it."""

    def schedule(self) -> TickSchedule:
        """The ticks of the run."""
        return TickSchedule(self.network, self.plan.batch, self.tick, self.total)
