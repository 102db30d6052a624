"""The ingest workers, a shard a call: publish its images, or the codes by which duplicates are found."""

import io
from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from jobs.cluster import shard_job
from pipelines import images
from pipelines.dataset import checked_file, layout, reader, writer
from pipelines.dataset.identity import IngestIdentity
from pipelines.dataset.manifest import Reject
from pipelines.dataset.shards import Sample
from pipelines.errors import CorruptError
from pipelines.images import ImageError, LimitError, Pixels
from pipelines.ingest import catalogue, duplicates, preparation
from pipelines.sources.registry import Origin, open_source
from pipelines.storage.folder import Folder

CODES = "codes"  # beside a dataset in progress: the codes of its images, and the duplicates that were found
FOUND = f"{CODES}/duplicates.parquet"


class IngestWorker:
    """Reads the images of a dataset in progress, by its catalogue, from its source."""

    def __init__(self, output: str, origin: Origin) -> None:
        self.folder, self.url = Folder(output), origin.url
        identity = reader.read_claim(self.folder).identity
        assert isinstance(identity, IngestIdentity)
        self.identity = identity
        self.source = open_source(origin.url, origin.kind, origin.choice)
        self.catalogue = catalogue.Reader(self.folder, self.identity.source, self.identity.shard_size)

    def images(self, shard: int) -> Iterator[tuple[int, str, int | None, Pixels | ImageError]]:
        """For each item of a shard: index, source, label, and the image as the dataset holds it or the error."""
        items, labels = self.catalogue.shard(shard)
        identity = self.identity
        indices = layout.shard_range(identity, shard)
        for index, item, label, content in zip(indices, items, labels, self.source.read(items), strict=True):
            image: Pixels | ImageError
            try:
                image = preparation.prepare(content, label, identity)
            except ImageError as error:
                if self.source.sealed and not isinstance(error, LimitError):
                    raise CorruptError(f"{self.url}/{item.place}: sample {item.name}: {error}") from error
                image = error
            yield index, item.name, label, image


class IngestShard(IngestWorker):
    """Reads, normalises, encodes and publishes one whole shard a call."""

    def __init__(self, output: str, origin: Origin) -> None:
        super().__init__(output, origin)
        self.kept = _read_found(self.folder) if self.identity.dedupe else {}

    def __call__(self, shard: int) -> dict[str, Any]:
        samples, rejects, names = [], [], []
        dedupe = self.identity.dedupe
        kind = "near duplicate" if dedupe and dedupe.mode == "near" else "duplicate"
        for index, name, label, image in self.images(shard):
            if index in self.kept:
                rejects.append(Reject(index, name, f"{kind}: of {self.kept[index]}"))
            elif isinstance(image, ImageError):
                rejects.append(Reject(index, name, str(image)))
            else:
                samples.append(Sample(index, images.encode(image), label))
                names.append(name)
        record = writer.commit(self.folder, shard, "ingest", samples, {"source": names}, rejects)
        return shard_job.shard_result(record, rejects)


class CodeShard(IngestWorker):
    """Publishes the codes of one shard's images a call."""

    def __call__(self, shard: int) -> dict[str, Any]:
        dedupe = self.identity.dedupe
        assert dedupe is not None, "a code is asked for only then"
        codes = {
            i: duplicates.code(image, dedupe.mode)
            for i, _, _, image in self.images(shard)
            if not isinstance(image, ImageError)
        }
        table = pa.table({"index": pa.array(codes, pa.int64()), "code": pa.array(codes.values(), pa.binary())})
        write_table(self.folder, f"{CODES}/{shard:06d}.parquet", table)
        return {}


def _read_found(folder: Folder) -> dict[int, str]:
    table = pq.read_table(io.BytesIO(checked_file.read(folder, FOUND)))
    return dict(zip(table["index"].to_pylist(), table["of"].to_pylist(), strict=True))


def write_table(folder: Folder, name: str, table: pa.Table) -> None:
    sink = io.BytesIO()
    pq.write_table(table, sink, compression="zstd")
    checked_file.write(folder, name, sink.getvalue())
