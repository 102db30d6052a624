"""report.md of a training run: its best model, its warnings, every tick, the last pictures and the settings."""

import json
from typing import Any

from jobs.training import diagnostics, run_store
from pipelines.storage.folder import Folder


def write_report(run: Folder, ticks: list[dict[str, Any]], best: dict[str, Any]) -> None:
    """Write report.md and abort uploads that dead workers left open."""
    claimed = run_store.read_claim(run)
    warnings = diagnostics.warnings(ticks, claimed["identity"]["method"]["loss"])
    lines = [
        f"# A training run of {ticks[-1]['images']:,} images",
        "",
        f"Best model: `{best['model']}`, {best['metric']} {best['value']:.5f} after {best['images']:,} images "
        f"({best['protocol']}).",
        "",
        *_warnings(warnings),
        f"![samples at the end](grids/{ticks[-1]['images']:012d}.png)",
        "",
        *_table(ticks, best["metric"]),
        "",
        "```json",
        json.dumps(claimed["settings"], indent=1),
        "```",
        "",
    ]
    run.write("report.md", "\n".join(lines).encode())
    run.abort_uploads()


def _warnings(warnings: list[str]) -> list[str]:
    if not warnings:
        return ["No warnings.", ""]
    return ["Warnings:", "", *(f"* {warning}" for warning in warnings), ""]


def _table(ticks: list[dict[str, Any]], metric: str) -> list[str]:
    names = ["images", "loss_d", "loss_g", "real_accuracy", "fake_accuracy", metric, "diversity", "images_per_second"]
    rows = [[f"{tick[name]:,}" if name == "images" else f"{tick[name]:.4g}" for name in names] for tick in ticks]
    return [
        "| " + " | ".join(names) + " |",
        "|---" * len(names) + "|",
        *("| " + " | ".join(row) + " |" for row in rows),
    ]
