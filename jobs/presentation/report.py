"""The page of a dataset: its images, the best and the worst by score, its origin, and what was not taken."""

import io
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from dcgan import model_card
from jobs.command import model_store
from pipelines import images
from pipelines.dataset import facts, layout, reader
from pipelines.dataset.attribution import UNKNOWN
from pipelines.dataset.facts import Facts
from pipelines.dataset.layout import Index
from pipelines.dataset.manifest import ShardRecord
from pipelines.pages import engine, figures
from pipelines.pages.figures import Chart
from pipelines.storage.folder import Folder

COLUMNS = 12  # images of a class, or of a line of scores
MOST_CLASSES = 30
MOST_REJECTS = 100
_BINS = 40
_READERS = 16  # threads, which mostly wait for the store
_SMALL_BYTES = 16 << 10  # larger images are stored as WebP

Row = Mapping[str, Any]


def render_html(folder: Folder, index: Index, shards: int) -> bytes:
    """The page. Reads the manifest rows of `shards` shards at most, and some hundred images, each by a range read.

    Raises: CorruptError naming a part or an image that changed after the seal.
    """
    records = _spread([record for record in index.shards if record.samples], shards)
    table = _rows(folder, records)
    claim = reader.read_claim(folder)
    rejects = _rejects(folder, index)
    known = facts.gather(folder, index.identity, {record.shard: record for record in index.shards})
    return engine.render(
        "dataset.html",
        dataset=str(folder),
        made=index.identity.producer == "generate",
        sentence=f"{known.summary} {known.bytes / 1e6:,.1f} MB in tars.",
        part="" if len(records) == len(index.shards) else f"{len(table):,} images of {len(records):,} shards",
        classes=_classes(folder, index, table),
        scores=_scores(folder, index, table),
        charts=_charts(table),
        facts=_facts(index, known),
        counts=_class_counts(index, table),
        chain=_chain(folder, index, claim.settings),
        rejects=rejects,
        most_rejects=MOST_REJECTS,
        settings=[(name, str(value)) for name, value in claim.settings.items()],
        identity=json.dumps(index.identity.to_json(), indent=1, sort_keys=True),
    )


def _spread(records: Sequence[ShardRecord], most: int) -> list[ShardRecord]:
    """At most `most` shards, evenly over the dataset, the first among them."""
    if len(records) <= most:
        return [*records]
    return [records[number * len(records) // most] for number in range(most)]


def _rows(folder: Folder, records: Sequence[ShardRecord]) -> pa.Table:
    with ThreadPoolExecutor(_READERS) as readers:
        parts = readers.map(lambda record: reader.read_sealed_part(folder, record).table, records)
        return pa.concat_tables(parts)


def _pictures(folder: Folder, index: Index, rows: Sequence[Row]) -> list[dict[str, str]]:
    """Images by their rows: source of an <img>, and words for it."""

    def picture(row: Row) -> dict[str, str]:
        data = reader.read_image(folder, row)
        if len(data) > _SMALL_BYTES:
            data = images.encode(images.decode(data, index.image_shape[2]), "webp", 90)
        kind = f" of class {index.classes[row['label']]}" if index.classes and row["label"] is not None else ""
        score = f", score {row['score']:.3f}" if "score" in row else ""
        return {"source": engine.data_url(data), "alt": f"Image {row['key']}{kind}{score}", "score": score[8:]}

    with ThreadPoolExecutor(_READERS) as readers:
        return [*readers.map(picture, rows)]


def _classes(folder: Folder, index: Index, table: pa.Table) -> list[dict[str, Any]]:
    """The first images of each class, or of all."""
    label_N = np.array(table["label"].to_pylist()) if index.classes else np.zeros(len(table), int)
    found = []
    for label, name in enumerate((index.classes or ["images"])[:MOST_CLASSES]):
        chosen = np.flatnonzero(label_N == label)[: COLUMNS if index.classes else 10 * COLUMNS]
        rows = table.take(chosen).to_pylist()
        found.append({"name": name, "pictures": _pictures(folder, index, rows)})
    return found


def _scores(folder: Folder, index: Index, table: pa.Table) -> list[dict[str, Any]]:
    """The images that the discriminator takes for real most, and least. None in a real dataset."""
    if "logit" not in table.column_names:
        return []
    order = np.argsort(table["logit"].to_numpy(), kind="stable")  # scores of 1.0 are equal, their logits are not
    ends = (("The best by score", order[::-1][: 2 * COLUMNS]), ("The worst by score", order[: 2 * COLUMNS]))
    return [{"name": name, "pictures": _pictures(folder, index, table.take(n).to_pylist())} for name, n in ends]


def _charts(table: pa.Table) -> list[Chart]:
    found = []
    if "score" in table.column_names:
        score_N = table["score"].to_numpy()
        counts, edges = np.histogram(score_N, _BINS, (0.0, 1.0))
        low, middle, high = np.quantile(score_N, (0.1, 0.5, 0.9))
        words = f"10 % are below {low:.2f}, half below {middle:.2f}, 90 % below {high:.2f}."
        found.append(figures.histograms("Scores", words, "score", edges.tolist(), {"score": counts.tolist()}))
    size_N = table["size"].to_numpy()
    counts, edges = np.histogram(size_N, _BINS)
    words = f"Bytes of an image: {size_N.min():,} to {size_N.max():,}, half below {np.median(size_N):,.0f}."
    return [*found, figures.histograms("Sizes", words, "bytes", edges.tolist(), {"size": counts.tolist()})]


def _facts(index: Index, known: Facts) -> list[tuple[str, str]]:
    stated = known.attribution
    words = [("title", stated.title), ("licence", stated.licence or UNKNOWN), ("citation", stated.citation)]
    return [
        *((name, text) for name, text in words if text),
        ("images", f"{index.samples:,}"),
        ("tars", f"{len(index.shards):,} in shards/, {index.bytes / 1e6:,.1f} MB"),
        ("rows", f"{sum(record.part_bytes for record in index.shards) / 1e6:,.1f} MB of Parquet in manifest/"),
        ("image format", index.identity.image.format),
        ("root", index.root),
    ]


def _class_counts(index: Index, table: pa.Table) -> list[tuple[str, str]]:
    """Images of each class among the rows that were read."""
    if not index.classes:
        return []
    counts = Counter(table["label"].to_pylist())
    return [(name, f"{counts[label]:,}") for label, name in enumerate(index.classes)]


def _chain(folder: Folder, index: Index, settings: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Where the images come from, each link with the hash that names it."""
    here = {"name": "this dataset", "hash": index.root, "words": [("folder", str(folder))]}
    identity = index.identity.to_json()
    if index.identity.producer != "generate":
        source = {
            "name": "source images",
            "hash": identity["source"],
            "words": [("source", str(settings.get("source"))), ("images listed", f"{index.identity.count:,}")],
        }
        return [source, here]
    copy = folder / model_store.IN_DATASET
    card = model_card.read_card(copy.read(model_card.CARD, model_card.MAX_CARD_BYTES))
    origin = card["provenance"]
    data = {"name": "real dataset", "hash": str(origin.get("data", "unknown")), "words": []}
    seeds = f"{identity['seed_start']:,} to {identity['seed_start'] + index.identity.count - 1:,}"
    model = {
        "name": "model",
        "hash": identity["model"],
        "words": [
            ("family", model_card.config_of(card).family),
            *(
                (name, str(value))
                for name, value in sorted(origin.items())
                if name != "data" and not isinstance(value, dict)  # a licence and so on have their own place
            ),
        ],
    }
    return [data, model, {**here, "words": [*here["words"], ("seeds", seeds)]}]


def _rejects(folder: Folder, index: Index) -> dict[str, Any] | None:
    """Every source that was not taken: counts by reason, and the first ones."""
    if layout.REJECTS not in index.files:
        return None
    table = pq.read_table(io.BytesIO(reader.read_sealed_file(folder, index, layout.REJECTS)))
    reasons = Counter(reason.split(":")[0] for reason in table["reason"].to_pylist())
    first = table.slice(0, MOST_REJECTS).to_pylist()
    return {
        "count": len(table),
        "reasons": [(reason, f"{count:,}") for reason, count in reasons.most_common()],
        "first": [(row["source"], row["reason"]) for row in first],
    }
