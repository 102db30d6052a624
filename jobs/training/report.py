"""report.html of a training run: whether it goes well, its curves, its pictures, its best model and its settings.

The page holds its pictures, so that it can be sent or archived alone. It is written again at each tick; the pictures of
a long run are thinned out.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from dcgan import model_card
from jobs.training import diagnostics, run_store
from jobs.training.settings import TrainSettings
from pipelines import images
from pipelines.pages import engine, figures
from pipelines.pages.engine import number
from pipelines.pages.figures import Chart
from pipelines.storage.folder import Folder, MissingError

REPORT = "report.html"
MOST_GRIDS = 24
MOST_ROWS = 200  # of the table
SHARE = 0.02  # of a run's time that its page may take
_LOSSLESS_BYTES = 64 << 10  # a larger grid is stored as WebP: one of 64x64 colour images has 800 KB as PNG
_STALE_TICKS = 5  # without a better model

Tick = Mapping[str, Any]


class Report:
    """Writes the page, and keeps the encoded pictures between two writings."""

    def __init__(self, run: Folder, total: int) -> None:
        """`total`: images to train on."""
        self.run, self.total = run, total
        self.claimed = run_store.read_claim(run)
        self.pictures: dict[str, str] = {}  # name -> source of an <img>
        self._ended, self._took = float("-inf"), 0.0

    def tick(self, ticks: Sequence[Tick]) -> None:
        """Write the page, unless the last writing took more than `SHARE` of the time since: then at a later tick."""
        started = time.monotonic()
        if self._took > SHARE * (started - self._ended):
            return
        self.write(ticks, run_store.read_best(self.run))
        self._ended = time.monotonic()
        self._took = self._ended - started

    def write(self, ticks: Sequence[Tick], best: Mapping[str, Any] | None) -> None:
        """Write the page. The same run gives the same bytes."""
        self.run.write(REPORT, self.render(ticks, best))

    def render(self, ticks: Sequence[Tick], best: Mapping[str, Any] | None) -> bytes:
        identity, settings = self.claimed["identity"], self.claimed["settings"]
        shown = _thinned(ticks, MOST_GRIDS, keep={best["images"]} if best else set())
        names = {tick["images"]: f"grids/{tick['images']:012d}.png" for tick in shown}
        self.pictures = {name: self._picture(name) for name in ("reals.png", *names.values())}
        return engine.render(
            "run.html",
            run=str(self.run),
            sentence=_sentence(self.claimed, ticks, self.total),
            going=ticks[-1]["images"] < self.total,
            verdict=_verdict(ticks, best),
            warnings=[_warning(line) for line in diagnostics.warnings(ticks, identity["method"]["loss"])],
            state=_state(ticks, self.total),
            real=self.pictures["reals.png"],
            conditional=bool(identity["network"].get("num_classes")),
            grids=[
                {"images": seen, "source": source, "words": _caption(seen, best)}
                for seen, name in names.items()
                if (source := self.pictures[name])
            ],
            thinned=len(ticks) - len(shown),
            charts=_charts(ticks, best),
            best=self._best(best),
            table=_table(_thinned(ticks, MOST_ROWS), len(ticks)),
            settings=_settings(settings),
            data_root=identity["data"],
        )

    def _picture(self, name: str) -> str:
        """A grid of the run, each image's pixel once. Empty if someone deleted it."""
        if name in self.pictures:
            return self.pictures[name]
        network = self.claimed["identity"]["network"]
        try:
            grid = images.decode(self.run.read(name), network["channels"])
        except MissingError:
            return ""
        scale = images.grid_scale(network["image_size"])
        data = images.encode(grid[::scale, ::scale])
        return engine.data_url(data if len(data) <= _LOSSLESS_BYTES else images.encode(grid, "webp", 90))

    def _best(self, best: Mapping[str, Any] | None) -> dict[str, str] | None:
        if best is None:
            return None
        try:
            digest = model_card.digest(self.run.read(f"{best['model']}/{model_card.CARD}", model_card.MAX_CARD_BYTES))
        except MissingError:  # someone deleted it
            digest = ""
        return {
            "folder": f"{self.run}/{best['model']}",
            "images": f"{best['images']:,}",
            "value": number(best["value"]),
            "protocol": best["protocol"],
            "digest": digest,
        }


def _thinned(ticks: Sequence[Tick], most: int, keep: frozenset[int] | set[int] = frozenset()) -> list[Tick]:
    """At most `most` ticks evenly over the run, and its last one, and those in `keep`.

    The step is a power of two: at the next tick the same ticks are shown, or every other one of them.
    """
    step = 1
    while len(ticks) > most * step:
        step *= 2
    chosen = [*ticks[step - 1 :: step]]
    wanted = {tick["images"] for tick in (*chosen, *ticks[-1:])} | keep
    return [tick for tick in ticks if tick["images"] in wanted]


def _sentence(claimed: Mapping[str, Any], ticks: Sequence[Tick], total: int) -> str:
    identity, settings = claimed["identity"], claimed["settings"]
    network = identity["network"]
    size = f"{network['image_size']}x{network['image_size']}x{network['channels']}"
    kind = f"with {network['num_classes']} classes" if network.get("num_classes") else "without classes"
    seen = ticks[-1]["images"]
    progress = f"{seen:,} images seen" if seen >= total else f"{seen:,} of {total:,} images seen ({seen / total:.0%})"
    return (
        f"A GAN of the family {network['network']} ({size}, {kind}), trained on {settings['data']} "
        f"by the recipe {settings['recipe']}: {progress}."
    )


def _state(ticks: Sequence[Tick], total: int) -> str:
    last = ticks[-1]
    rate = f"{last['images_per_second']:,.0f} images a second in the last tick"
    left = (total - last["images"]) / max(last["images_per_second"], 1e-9)
    return f"Finished; {rate}." if left <= 0 else f"Going on; {rate}, at which the rest takes {_duration(left)}."


def _duration(seconds: float) -> str:
    unit, name = next(((unit, name) for unit, name in ((86400, "days"), (3600, "hours"), (60, "minutes"))
                       if seconds >= 2 * unit), (1, "seconds"))  # fmt: skip
    return f"{seconds / unit:,.0f} {name}"


def _verdict(ticks: Sequence[Tick], best: Mapping[str, Any] | None) -> dict[str, str]:
    """Whether the run goes well, by its distance to real images. The warnings stand beside it."""
    if best is None:
        return {"grade": "fair", "title": "Nothing measured yet", "words": "The first tick has not ended."}
    first = ticks[0]["kernel_distance"]
    later = [tick for tick in ticks if tick["images"] > best["images"]]
    fell = f"The distance to real images went from {number(first)} after {ticks[0]['images']:,} images to " \
        f"{number(best['value'])} after {best['images']:,}"  # fmt: skip
    if not later:
        return {"grade": "good", "title": "It gets better", "words": f"{fell}: the newest model is the best."}
    since = f"No better model came in the {len(later)} ticks since" if len(later) > 1 else "The tick since is worse"
    words = f"{fell}. {since}; the best model is kept."
    if len(later) < _STALE_TICKS:
        return {"grade": "fair", "title": "The best model is not the newest", "words": words}
    return {
        "grade": "fair",
        "title": "It no longer gets better",
        "words": f"{words} More images are unlikely to help; a GAN often gets worse late.",
    }


def _warning(line: str) -> dict[str, str]:
    """A warning's symptom, and the rest of it."""
    symptom, _, rest = line.partition(": ")
    return {"symptom": symptom, "words": rest}


def _caption(seen: int, best: Mapping[str, Any] | None) -> str:
    return f"after {seen:,} images" + (", the best model" if best and best["images"] == seen else "")


def _charts(ticks: Sequence[Tick], best: Mapping[str, Any] | None) -> list[Chart]:
    seen_N = [tick["images"] for tick in ticks]

    def chart(title: str, words: Callable[[], str], names: Mapping[str, str], **options: Any) -> Chart:
        series = {label: [tick[name] for tick in ticks] for name, label in names.items() if name in ticks[0]}
        return figures.lines(title, words(), "images seen", seen_N, series, **options)

    def ends(name: str) -> str:
        return f"{number(ticks[0][name])} at first, {number(ticks[-1][name])} at last"

    distances = [tick["kernel_distance"] for tick in ticks]
    ring = (best["images"], best["value"]) if best and np.isfinite(best["value"]) else None
    return [
        chart(
            "Distance to real images",
            lambda: (
                f"Lower is better: {ends('kernel_distance')}, the least {number(min(distances))}. "
                "The ring is the best model."
            ),
            {"kernel_distance": "kernel distance"},
            log=min(distances) > 0 and (ring is None or ring[1] > 0),
            mark=ring,
        ),
        chart(
            "Variety",
            lambda: f"Diversity, 1 is as varied as real images: {ends('diversity')}.",
            {"diversity": "diversity"},
        ),
        chart(
            "Losses",
            lambda: (
                f"Discriminator: {ends('loss_d')}. Generator: {ends('loss_g')}. "
                "They balance each other and say little about quality."
            ),
            {"loss_d": "discriminator", "loss_g": "generator"},
        ),
        chart(
            "What the discriminator gets right",
            lambda: (
                f"Share of real images: {ends('real_accuracy')}. Of fake ones: {ends('fake_accuracy')}. "
                "Near 1 it leaves the generator no gradient."
            ),
            {"real_accuracy": "real images", "fake_accuracy": "fake images"},
        ),
        chart(
            "Gradients",
            lambda: "The norms of both networks' gradients.",
            {"gradient_d": "discriminator", "gradient_g": "generator"},
        ),
        chart(
            "Speed",
            lambda: f"Images a second: {ends('images_per_second')}.",
            {"images_per_second": "images a second"},
        ),
    ]


def _table(ticks: Sequence[Tick], count: int) -> dict[str, Any]:
    names = [name for name, value in ticks[-1].items() if isinstance(value, (int, float))]
    rows = [[f"{tick[n]:,}" if n == "images" else number(tick.get(n)) for n in names] for tick in ticks]
    title = "Every tick" if count == len(ticks) else f"{len(ticks):,} of {count:,} ticks"
    return {"title": title, "columns": [(name.replace("_", " "), True) for name in names], "rows": rows}


def _settings(settings: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """Name, value and meaning of each stored setting."""
    known = TrainSettings.model_fields
    return [
        (name, str(value), (known[name].description or "") if name in known else "") for name, value in settings.items()
    ]
