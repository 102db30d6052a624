"""Manifest parts: plain columns that any reader opens, and a footer that tells of the whole shard."""

import hashlib
import io
import json
import math

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.dataset import manifest, shards
from pipelines.dataset.manifest import PartError, Reject, ShardRecord
from pipelines.dataset.shards import Packed, Sample

LOGITS = [-1.5, 0.0, 3.25]
LAST = 10**12 - 1  # the largest index that has twelve digits
COMMON = [
    ("key", "string", "BYTE_ARRAY"),
    ("index", "int64", "INT64"),
    ("shard", "int32", "INT32"),
    ("offset", "int64", "INT64"),
    ("size", "int32", "INT32"),
    ("sha256", "fixed_size_binary[32]", "FIXED_LEN_BYTE_ARRAY"),
    ("label", "int32", "INT32"),
]
PRODUCERS = {
    "ingest": ([("source", "string", "BYTE_ARRAY")], {"source": ["cats/ä.png", "", "x#3"]}),
    "generate": (
        [("seed", "int64", "INT64"), ("logit", "float", "FLOAT"), ("score", "float", "FLOAT")],
        {"seed": [0, 1, 2**63 - 1], "logit": LOGITS, "score": manifest.sigmoid(np.array(LOGITS)).tolist()},
    ),
}
REJECTS = (Reject(4, "cats/b.txt", "not an image"), Reject(6, "ü/c.png", "damaged: cut short"))


def packed() -> Packed:
    return shards.pack([Sample(0, b"one", 3), Sample(5, b"", None), Sample(LAST, b"three" * 300, 0)], "png")


def part(producer: str, rejects: tuple[Reject, ...] = ()) -> bytes:
    return manifest.encode(producer, 7, packed(), PRODUCERS[producer][1], rejects)


@pytest.mark.parametrize("producer", PRODUCERS)
def test_columns_and_their_types_are_plain_and_fixed(producer: str) -> None:
    file = pq.ParquetFile(io.BytesIO(part(producer)))
    columns = [
        (field.name, str(field.type), file.schema.column(n).physical_type) for n, field in enumerate(file.schema_arrow)
    ]
    assert columns == COMMON + PRODUCERS[producer][0]
    assert [field.name for field in file.schema_arrow if field.nullable] == ["label"]


@pytest.mark.parametrize("producer", PRODUCERS)
def test_a_part_is_one_row_group_and_its_footer_holds_nothing_of_arrow(producer: str) -> None:
    file = pq.ParquetFile(io.BytesIO(part(producer)))
    assert file.metadata.num_row_groups == 1
    assert {*file.metadata.metadata} == {b"ganmill"}
    assert {file.metadata.row_group(0).column(n).compression for n in range(file.metadata.num_columns)} == {"ZSTD"}


@pytest.mark.parametrize("producer", PRODUCERS)
def test_every_value_is_read_back(producer: str) -> None:
    source, extra = packed(), PRODUCERS[producer][1]
    rows = manifest.decode(part(producer), "x").table.to_pydict()
    assert rows == {
        "key": ["000000000000", "000000000005", "999999999999"],
        "index": [0, 5, LAST],
        "shard": [7, 7, 7],
        "offset": source.offset,
        "size": [3, 0, 1500],
        "sha256": [hashlib.sha256(image).digest() for image in (b"one", b"", b"three" * 300)],
        "label": [3, None, 0],
        **extra,
    }


@pytest.mark.parametrize("rejects", [(), REJECTS])
def test_the_footer_tells_of_the_tar_and_of_what_was_rejected(rejects: tuple[Reject, ...]) -> None:
    read = manifest.decode(part("ingest", rejects), "x")
    tar = packed().data
    assert (read.shard, read.tar_bytes, read.tar_sha256) == (7, len(tar), hashlib.sha256(tar).hexdigest())
    assert read.rejects == rejects


@pytest.mark.parametrize("producer", PRODUCERS)
def test_the_same_rows_give_the_same_bytes_and_other_rows_others(producer: str) -> None:
    assert part(producer) == part(producer)
    assert part(producer) != part(producer, REJECTS)
    assert part(producer) != manifest.encode(producer, 8, packed(), PRODUCERS[producer][1])


def test_a_shard_of_which_all_was_rejected_has_a_part_too() -> None:
    data = manifest.encode("ingest", 0, shards.pack([], "png"), {"source": []}, REJECTS)
    read = manifest.decode(data, "x")
    assert (len(read.table), read.rejects) == (0, REJECTS)
    assert read.table.column_names == [name for name, *_ in COMMON] + ["source"]


def test_a_record_says_what_the_seal_will_say() -> None:
    data, tar = part("generate"), packed().data
    assert manifest.record(data, manifest.decode(data, "x")) == ShardRecord(
        shard=7,
        samples=3,
        bytes=len(tar),
        sha256=hashlib.sha256(tar).hexdigest(),
        part_bytes=len(data),
        part_sha256=hashlib.sha256(data).hexdigest(),
    )


@pytest.mark.parametrize(("shard", "digits"), [(0, "000000"), (999_999, "999999"), (1_000_000, "1000000")])
def test_both_files_of_a_shard_are_named_by_its_number(shard: int, digits: str) -> None:
    record = ShardRecord(shard, 0, 0, "", 0, "")
    assert record.tar == manifest.tar_name(shard) == f"shards/{digits}.tar"
    assert record.part == manifest.part_name(shard) == f"manifest/{digits}.parquet"


def parquet(footer: object) -> bytes:
    """A Parquet file that has our columns, and our key with another content."""
    sink = io.BytesIO()
    schema = pa.schema([*manifest.COLUMNS, *manifest.EXTRA["ingest"]])
    with pq.ParquetWriter(sink, schema, store_schema=False) as writer:
        writer.write_table(schema.empty_table())
        if footer is not None:
            writer.add_key_value_metadata({b"ganmill": footer if isinstance(footer, bytes) else json.dumps(footer)})
    return sink.getvalue()


WHOLE = {"shard": 0, "tar_bytes": 1, "tar_sha256": "", "rejects": []}


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"PAR1",
        b"PAR1 and something PAR1",
        packed().data,
        parquet(None),
        parquet(b"\xff not JSON"),
        parquet([]),
        parquet({name: value for name, value in WHOLE.items() if name != "tar_sha256"}),
        parquet({**WHOLE, "rejects": [{"index": 1}]}),
        parquet({**WHOLE, "rejects": None}),
        *(part("ingest", REJECTS)[:size] for size in range(1, len(part("ingest", REJECTS)), 101)),
    ],
)
def test_what_is_not_a_part_is_refused_by_name(data: bytes) -> None:
    with pytest.raises(PartError, match=r"^s3://b/manifest/000007\.parquet: not a manifest part: ."):
        manifest.decode(data, "s3://b/manifest/000007.parquet")


def test_the_files_of_the_test_above_are_refused_for_their_footers_alone() -> None:
    assert manifest.decode(parquet(WHOLE), "x").tar_bytes == 1


def test_rejects_are_a_plain_table() -> None:
    file = pq.ParquetFile(io.BytesIO(manifest.encode_rejects(REJECTS)))
    assert [(field.name, str(field.type)) for field in file.schema_arrow] == [
        ("index", "int64"),
        ("source", "string"),
        ("reason", "string"),
    ]
    assert file.read().to_pylist() == [
        {"index": 4, "source": "cats/b.txt", "reason": "not an image"},
        {"index": 6, "source": "ü/c.png", "reason": "damaged: cut short"},
    ]
    assert b"ARROW:schema" not in (file.metadata.metadata or {})


@pytest.mark.filterwarnings("error")
def test_the_sigmoid_warns_of_nothing_and_has_the_bits_it_always_had() -> None:
    """A critic's logits reach -2,000, where the exponential overflows. All that it says is that the score is 0."""
    tiny = [value for power in range(-149, 11) for value in (2.0**power, -(2.0**power))]
    logits_N = np.concatenate([np.linspace(-2500, 2500, 400_001), np.linspace(-20, 20, 400_001), tiny]).astype(
        np.float32
    )
    scores_N = manifest.sigmoid(logits_N)
    with np.errstate(all="ignore"):
        before_N = (1.0 / (1.0 + np.exp(-logits_N.astype(np.float64)))).astype(np.float32)
    assert scores_N.tobytes() == before_N.tobytes()
    assert manifest.sigmoid(np.array([-2000, 2000], np.float32)).tolist() == [0.0, 1.0]
    manifest.check_scores(logits_N, scores_N)
    manifest.check_scores(np.zeros(0, np.float32), np.zeros(0, np.float32))


@pytest.mark.parametrize(
    ("logit", "score"),
    [(np.nan, 0.5), (np.nan, np.nan), (np.inf, 1.0), (-np.inf, 0.0), (0.0, np.nan), (1.0, 0.5), (-1.0, 0.7310586)],
)
def test_a_logit_that_is_not_finite_or_a_score_that_is_not_its_sigmoid_is_neither_written_nor_read(
    logit: float, score: float
) -> None:
    rows = {"seed": [0, 1, 2], "logit": [*LOGITS[:2], logit], "score": [*manifest.sigmoid(np.array(LOGITS[:2])), score]}
    with pytest.raises(ValueError, match=r"^row 2: logit .* and finite \(1 such rows\)$"):
        manifest.encode("generate", 7, packed(), rows)
    good = io.BytesIO(part("generate"))
    table = pq.read_table(good)
    for name in ("logit", "score"):
        table = table.set_column(
            table.schema.get_field_index(name), table.schema.field(name), pa.array(rows[name], pa.float32())
        )
    sink = io.BytesIO()
    with pq.ParquetWriter(sink, table.schema.remove_metadata(), store_schema=False) as writer:
        writer.write_table(table)
        writer.add_key_value_metadata({b"ganmill": pq.read_metadata(good).metadata[b"ganmill"]})
    with pytest.raises(PartError, match=r"^x: not a manifest part: row 2: logit "):
        manifest.decode(sink.getvalue(), "x")


@pytest.mark.parametrize("logit", [-30.0, -2.7, -0.1, 0.0, 1e-3, 2.7, 15.0])
def test_a_score_may_be_off_by_its_last_bit(logit: float) -> None:
    """Processors round an exponential differently, and a dataset may come from another one."""
    logits_N = np.array([logit], np.float32)
    for towards in (-1, 2):
        near_N = np.nextafter(manifest.sigmoid(logits_N), np.float32(towards))
        manifest.check_scores(logits_N, near_N)
        if towards == -1 or near_N < 1:
            with pytest.raises(ValueError, match="row 0"):
                manifest.check_scores(logits_N, np.nextafter(near_N, np.float32(towards)))


CALIBRATION = manifest.Calibration(0.58, -0.16)


def calibrated() -> bytes:
    logits_N = np.array(LOGITS, np.float32)
    rows = {"seed": [0, 1, 2], "logit": logits_N, "score": manifest.sigmoid(logits_N, CALIBRATION)}
    return manifest.encode("generate", 7, packed(), rows, calibration=CALIBRATION)


def test_the_calibration_of_the_scores_is_in_the_footer_of_those_parts_alone_that_have_one() -> None:
    read = manifest.decode(calibrated(), "x")
    assert (read.calibration, manifest.decode(part("generate"), "x").calibration) == (CALIBRATION, manifest.NONE)
    assert read.table["score"].to_pylist() == manifest.sigmoid(np.array(LOGITS, np.float32), CALIBRATION).tolist()
    assert b"calibration" not in part("generate")


@given(
    st.floats(1e-3, 1e3),
    st.floats(-1e3, 1e3),
    st.lists(st.floats(-100, 100, width=32), min_size=2, max_size=20),
)
def test_a_calibrated_score_is_the_sigmoid_of_the_line_and_keeps_the_order(
    slope: float, intercept: float, logits: list[float]
) -> None:
    calibration, logits_N = manifest.Calibration(slope, intercept), np.array(sorted(logits), np.float32)
    scores_N = manifest.sigmoid(logits_N, calibration)
    manifest.check_scores(logits_N, scores_N, calibration)
    assert np.all(np.diff(scores_N) >= 0)
    for logit, score in zip(logits_N.tolist(), scores_N.tolist(), strict=True):
        x = slope * logit + intercept
        exact = 1 / (1 + math.exp(-x)) if x > -700 else 0.0
        assert score == pytest.approx(exact, rel=1e-6, abs=1e-37)


@pytest.mark.parametrize(
    "found",
    [
        {"slope": 0.6, "intercept": -0.16},
        {"slope": -0.58, "intercept": -0.16},
        {"slope": float("nan"), "intercept": 0.0},
        {"slope": 1e300, "intercept": 0.0},
        {"slope": 1, "intercept": 0.0},
        {"slope": 1.0},
        [1.0, 0.0],
        None,
    ],
)
def test_scores_that_their_calibration_does_not_give_are_refused(found: object) -> None:
    good = io.BytesIO(calibrated())
    table, meta = pq.read_table(good), pq.read_metadata(good).metadata
    footer = {**json.loads(meta[b"ganmill"]), "calibration": found}
    sink = io.BytesIO()
    with pq.ParquetWriter(sink, table.schema.remove_metadata(), store_schema=False) as writer:
        writer.write_table(table)
        writer.add_key_value_metadata({b"ganmill": json.dumps(footer)})
    with pytest.raises(PartError, match=r"^x: not a manifest part: "):
        manifest.decode(sink.getvalue(), "x")
