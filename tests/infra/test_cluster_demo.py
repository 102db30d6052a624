"""`make cluster-demo`: hosts in network namespaces, a host that dies, and nothing left behind however it ends."""

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.processes import until

pytestmark = pytest.mark.slow

DEMO = [sys.executable, str(ROOT / "infra" / "cluster_demo.py")]


def leftovers(demo: int) -> list[str]:
    """What a demo with this process id has left: namespaces, links, folders, processes."""
    found = []
    if os.geteuid() == 0:
        for kind in (["netns"], ["-brief", "link"]):
            listing = subprocess.run(["ip", *kind], capture_output=True, text=True, check=True).stdout
            found += re.findall(rf"gm{demo}\S*", listing)
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                words = (entry / "environ").read_bytes()
            except OSError:
                continue
            if f"CLUSTER_DEMO={demo}\0".encode() in words:
                found.append(entry.name)
    return found


@pytest.mark.skipif(sys.platform != "linux", reason="network namespaces and /proc are Linux's")
@pytest.mark.parametrize("how", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.long)])
def test_a_demo_that_is_stopped_leaves_nothing(how: signal.Signals, tmp_path: Path) -> None:
    log = tmp_path / "log"
    with log.open("w") as file:
        demo = subprocess.Popen(DEMO, stdout=file, stderr=subprocess.STDOUT, start_new_session=True)
        try:
            until(lambda: "$ ray job submit" in log.read_text() or demo.poll() is not None, "the cluster is up")
            assert demo.poll() is None, log.read_text()
            assert len(leftovers(demo.pid)) > 8  # hosts with a node each, and what runs on them
        finally:
            demo.send_signal(how)
        assert demo.wait(60) == 128 + how, log.read_text()
    assert leftovers(demo.pid) == []


@pytest.mark.long
@pytest.mark.parametrize("flags", [(), ("--processes",)], ids=["namespaces", "processes"])
def test_the_whole_line_survives_the_death_of_a_host(flags: tuple[str, ...]) -> None:
    done = subprocess.run([*DEMO, *flags], capture_output=True, text=True, timeout=280, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "processes killed" in done.stdout
    assert "verify: 64 images made again from their rows: 64 equal in every pixel and score" in done.stdout
    assert re.search(r"worker-1 killed after \d+ of 60 shards, worker-3 came", done.stdout)
    assert "with a wrong token: refused" in done.stdout
