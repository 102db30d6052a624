"""The classification accuracy score: for each dataset a classifier, trained on it and tested on real images.

An actor trains one classifier on one core, from the loader's shuffled batches. Its weights do not depend on the
number of workers.
"""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from safetensors.numpy import load, save

from dcgan import model_files
from dcgan.evaluation import classifier
from jobs.cluster import actor_pool
from jobs.cluster.connection import Pool
from jobs.command.errors import LostWorkError
from jobs.evaluation.feature_pass import PARTS
from pipelines.dataset import checked_file, claim, reader, selection
from pipelines.errors import CorruptError
from pipelines.loading import loader, order
from pipelines.storage.folder import Folder

_SHUFFLE = 16_384


@dataclass(frozen=True, slots=True)
class ClassifierTraining:
    """The data that one classifier is trained and tested on. An equal training gives equal files."""

    trained: str  # URLs of sealed datasets, with their roots
    trained_root: str
    tested: str
    tested_root: str
    classes: int
    images: int  # for training, over all epochs
    seed: int
    selection: str | None = None  # the URL of a selection of `trained`, and its digest
    selected: str | None = None

    @property
    def name(self) -> str:
        key = claim.canonical({**asdict(self), "what": classifier.PROTOCOL})
        return f"{PARTS}/{hashlib.sha256(key).hexdigest()[:16]}"

    @property
    def weights(self) -> str:
        return f"{self.name}-weights.safetensors"

    @property
    def answers(self) -> str:
        return f"{self.name}-answers.safetensors"


class TrainClassifier:
    """Trains and tests one classifier a call."""

    def __init__(self, trainings: Sequence[ClassifierTraining], output: str) -> None:
        self.trainings, self.output = trainings, Folder(output)

    def __call__(self, shard: int) -> dict[str, Any]:
        training = self.trainings[shard]
        folder = Folder(training.trained)
        index = selection.open_through(folder, training.selection)
        counts = tuple(record.samples for record in index.shards)
        plan = order.make_plan(counts, min(classifier.BATCH, index.samples), _SHUFFLE, training.seed)
        batches = loader.batches(folder, index, plan, 0, 1, 0)
        steps = max(1, training.images // plan.batch)
        trained_network = classifier.train(
            index.image_shape,
            training.classes,
            ((batch.images_BHWC, batch.labels_B) for batch in batches),
            steps,
            training.seed,
        )
        batches.close()
        wrong_N = np.concatenate(
            [
                classifier.classify(trained_network, images_NHWC) != label_N
                for images_NHWC, label_N in _all(training.tested)
            ]
        )
        weights = model_files.to_bytes(trained_network.state_dict())
        self.output.write(training.weights, weights)
        answers = {"wrong": wrong_N, "weights": _sha256(weights)}
        checked_file.write(
            self.output, training.answers, save(answers)
        )  # last: its presence means that the training is done
        return {}


def train_classifiers(trainings: Mapping[str, ClassifierTraining], output: Folder, pool: Pool) -> dict[str, np.ndarray]:
    """Train and test the classifiers that the output does not have yet. The weights are among the output's parts.

    Returns: wrong_N by role, the test images that got a wrong label.
    Raises: LostWorkError with the first training that failed.
    """
    ordered = list(trainings.values())
    existing = output.list(PARTS)
    missing = [n for n, training in enumerate(ordered) if training.answers.rpartition("/")[2] not in existing]
    if missing:
        names = " and ".join(trainings)
        print(f"evaluate: training classifiers on {names}, {ordered[0].images:,} images each", flush=True)
    arguments = {"trainings": ordered, "output": output.url}
    bad = [done for done in actor_pool.map_shards(TrainClassifier, arguments, missing, pool) if done.error]
    if bad:
        raise LostWorkError(f"the classifier of {ordered[bad[0].shard].trained} was not trained: {bad[0].error}")
    return {role: _answers(output, training) for role, training in trainings.items()}


def _answers(output: Folder, training: ClassifierTraining) -> np.ndarray:
    """Which test images a classifier got wrong. Raises CorruptError if its weights changed since then."""
    answers = load(checked_file.read(output, training.answers))
    if not np.array_equal(_sha256(output.read(training.weights)), answers["weights"]):
        raise CorruptError(
            f"{output}/{training.weights}: changed since they were written; delete {output}/{PARTS} and start the same "
            "command again"
        )
    wrong_N: np.ndarray = answers["wrong"]
    return wrong_N


def _sha256(data: bytes) -> np.ndarray:
    return np.frombuffer(hashlib.sha256(data).digest(), np.uint8)


def _all(url: str) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    folder = Folder(url)
    index = reader.open_sealed(folder)
    for record in index.shards:
        yield from loader.in_order(folder, index, record, 512)
