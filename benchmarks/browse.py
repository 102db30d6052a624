#!/usr/bin/env python3
"""Memory and answers of `jobs/browse.py` over a manifest of a million rows.

python benchmarks/browse.py --rows 1e6

The manifest is a generated dataset's, by the code that writes one; the tars are left out, as no image is asked for.
"""

import argparse
import hashlib
import json
import re
import subprocess
import sys
import tempfile
import time
from http.client import HTTPConnection
from pathlib import Path

import numpy as np
import psutil

from pipelines.dataset import claim, manifest, reader
from pipelines.dataset.identity import from_json
from pipelines.dataset.layout import CLAIM, SEAL, Index, num_shards, shard_range
from pipelines.dataset.shards import Packed
from pipelines.storage.folder import Folder

JOB = Path(__file__).resolve().parent.parent / "jobs" / "browse.py"
LIMIT_MB = 300
QUESTIONS = {
    "first page": "/",
    "best of a class": "/?label=3&order=score-down",
    "last page, by score": "/?order=score-down&page=9999",
    "scores from 0.9 to 0.901": "/?low=0.9&high=0.901",
    "one image's row": "/image/000000000500",
}


def make(folder: Folder, rows: int) -> None:
    """A sealed dataset of `rows` rows, without its tars."""
    identity = from_json(
        {
            "producer": "generate",
            "count": rows,
            "shard_size": 10_000,
            "image_size": 64,
            "channels": 3,
            "image": {"format": "png"},
            "classes": [str(n) for n in range(10)],
            "arithmetic": {},
            "model": "0" * 64,
        }
    )
    records = []
    for shard in range(num_shards(identity)):
        rng, owned = np.random.default_rng(shard), [*shard_range(identity, shard)]
        logit_N = rng.normal(0, 2, len(owned)).astype(np.float32)
        packed = Packed(
            data=b"", index=owned, offset=[6144 * n for n in range(len(owned))],
            size=rng.integers(3000, 5000, len(owned)).tolist(), sha256=[rng.bytes(32) for _ in owned],
            label=[index % 10 for index in owned],
        )  # fmt: skip
        extra = {"seed": owned, "logit": logit_N, "score": manifest.sigmoid(logit_N)}
        part = manifest.encode("generate", shard, packed, extra)
        folder.write(manifest.part_name(shard), part)
        tar_bytes, digest = 6144 * len(owned), hashlib.sha256(part).hexdigest()
        records.append(manifest.ShardRecord(shard, len(owned), tar_bytes, "0" * 64, len(part), digest))
    claimed = claim.encode(identity.to_json(), {})
    folder.write(CLAIM, claimed)
    index = Index(identity, tuple(records), {CLAIM: hashlib.sha256(claimed).hexdigest()}, "")
    folder.write(SEAL, claim.canonical(reader.seal_json(index)) + b"\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=lambda text: int(float(text)), default=1_000_000)
    parser.add_argument("--json", type=Path, help="write figures here")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="ganmill-browse-") as place:
        make(Folder(f"{place}/dataset"), arguments.rows)
        with subprocess.Popen(
            [sys.executable, str(JOB), "--dataset", f"{place}/dataset"], stdout=subprocess.PIPE, text=True
        ) as server:
            try:
                figures = ask(server)
            finally:
                server.terminate()
    for name, value in figures.items():
        print(f"{arguments.rows:>12,} rows  {name:48}{value:10,.1f}")
    print("under" if figures["memory at its peak (resident), MB"] < LIMIT_MB else "ABOVE", f"{LIMIT_MB} MB")
    if arguments.json:
        arguments.json.write_text(json.dumps({"ratios": {}, "figures": figures}, indent=1) + "\n")


def ask(server: "subprocess.Popen[str]") -> dict[str, float]:
    """Ask each question once; save a selection; then look at the server's memory."""
    start, figures = time.monotonic(), {}
    assert server.stdout is not None
    address = next(found for line in server.stdout if (found := re.search(r":(\d+)/\?token=(\S+)", line)))
    figures["start, s"] = time.monotonic() - start
    port, cookie = int(address[1]), f"ganmill-{address[1]}={address[2]}"
    for name, path in QUESTIONS.items():
        start = time.monotonic()
        get(port, path, cookie)
        figures[f"{name}, ms"] = (time.monotonic() - start) * 1000
    figures["peak of memory before the save (resident), MB"] = peak_mb(server.pid)
    form = re.search(r'name="form" value="([^"]+)"', get(port, "/", cookie))
    assert form is not None
    start = time.monotonic()
    connection = HTTPConnection("127.0.0.1", port)
    headers = {"Cookie": cookie, "Origin": f"http://127.0.0.1:{port}"}
    connection.request("POST", "/save", f"form={form[1]}&name=all&filter=", headers)
    assert connection.getresponse().status == 303
    figures["save all as a selection, ms"] = (time.monotonic() - start) * 1000
    figures["memory now (unshared), MB"] = psutil.Process(server.pid).memory_full_info().uss / 1e6
    figures["memory at its peak (resident), MB"] = peak_mb(server.pid)
    return figures


def peak_mb(pid: int) -> float:
    peak = re.search(r"VmHWM:\s+(\d+)", Path(f"/proc/{pid}/status").read_text())
    assert peak is not None
    return int(peak[1]) * 1024 / 1e6


def get(port: int, path: str, cookie: str) -> str:
    connection = HTTPConnection("127.0.0.1", port)
    connection.request("GET", path, headers={"Cookie": cookie})
    answer = connection.getresponse()
    body = answer.read().decode()
    assert answer.status == 200, (path, answer.status, body)
    return body


if __name__ == "__main__":
    main()
