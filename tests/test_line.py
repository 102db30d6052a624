"""The README's three lines and verify, as a user types them, with everything on an S3 server over HTTP."""

import boto3
import pyarrow.parquet as pq
import s3fs

from tests.conftest import Job


def test_the_whole_line_runs_on_object_storage(s3: str, job: Job) -> None:
    env = {"GANMILL_ROOT": f"{s3}/line"}
    small = ("--images", 1280, "--tick", 640, "--width", 16, "--metric-images", 200, "--workers", 2)
    for name, flags, says in (
        ("ingest", ("--source", "digits"), "5,000 images, "),
        ("train", small, "best model models/"),
        ("train", small, "nothing to do"),
        ("generate", ("--count", "1e3", "--shard-size", 250), "1,000 images, "),
        ("verify", ("--regenerate", 16), "16 images made again from their rows: 16 equal in every pixel and score"),
    ):
        done = job(name, *flags, env=env)
        assert done.returncode == 0, done.stderr
        assert says in done.stdout

    bucket = s3.removeprefix("s3://")
    listing = boto3.client("s3").list_objects_v2(Bucket=bucket, Prefix="line/synthetic/")
    keys = {entry["Key"].removeprefix("line/synthetic/") for entry in listing["Contents"]}
    assert {"dataset.json", "index.json", "preview.png", "shards/000003.tar", "manifest/000003.parquet"} <= keys
    assert not [key for key in keys if key.startswith("journal/")]

    fs = s3fs.S3FileSystem()
    row = pq.read_table(f"{bucket}/line/synthetic/manifest/000002.parquet", filesystem=fs).to_pylist()[7]
    offset, end = row["offset"], row["offset"] + row["size"]
    image = fs.cat_file(f"{bucket}/line/synthetic/shards/000002.tar", start=offset, end=end)
    assert image.startswith(b"\x89PNG")
    assert len(image) == row["size"]
