"""Write docs/settings.md from the settings classes: `python -m docs.write_settings`, or `make docs`.

No module of jobs may import a command; this script is outside for that reason.
"""

from collections.abc import Mapping
from pathlib import Path
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin

from pydantic.fields import FieldInfo

from jobs import browse, curate, evaluate, explore, generate, ingest, score, show, train, verify
from jobs.command.settings import ClusterSettings, JobSettings

PAGE = Path(__file__).parent / "settings.md"
SETTINGS: tuple[type[JobSettings], ...] = (
    ingest.IngestSettings,
    train.TrainSettings,
    generate.GenerateSettings,
    verify.VerifySettings,
    evaluate.EvaluateSettings,
    score.ScoreSettings,
    curate.CurateSettings,
    explore.ExploreSettings,
    show.ShowSettings,
    browse.BrowseSettings,
)
_HEAD = """# Settings

Every command and every setting. `make docs` writes this page from the settings classes; edit it there.

A setting can be given in four places. The first of these that has it counts: the flag (`--shard-size 1000`), the
environment (`GANMILL_SHARD_SIZE=1000`), the file of `--config` (`shard_size = 1000`), and for `train` the recipe. Whole
numbers may be written `1e6`. `{root}` stands for the value of `--root`.

*Resume* says whether a setting may change when the same command continues its output. Where it says *no*, a value that
changes the output is refused, and the error names both values. A source, dataset or model may move to another URL.
A larger `--count` extends a dataset; a smaller one is refused.
"""


def page() -> str:
    """The page as Markdown."""
    common = ["## Every command", "", *_table(ClusterSettings, ClusterSettings.model_fields), ""]
    return "\n".join([_HEAD, *common, *map(_section, SETTINGS)])


def _section(settings: type[JobSettings]) -> str:
    own = {name: field for name, field in settings.model_fields.items() if name not in ClusterSettings.model_fields}
    return "\n".join([f"## {settings.command}", "", " ".join(settings.about.split()), "", *_table(settings, own), ""])


def _table(settings: type[JobSettings], fields: Mapping[str, FieldInfo]) -> list[str]:
    claims = settings.changeable is not None
    head = ["Flag", "Default", "Values", "Meaning", *(["Resume"] if claims else [])]
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    for name, field in fields.items():
        cells = [f"`--{name.replace('_', '-')}`", _default(field), _values(field), field.description or ""]
        cells += [_resume(settings, name)] if claims else []
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return lines


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    if field.default is None or field.default == "":
        return ""
    return f"`{str(field.default).lower() if isinstance(field.default, bool) else field.default}`"


def _values(field: FieldInfo) -> str:
    """The choices of a field, or its range."""
    choices = _choices(field.annotation)
    if choices:
        return ", ".join(f"`{choice}`" for choice in choices)
    bounds = {name: getattr(one, name) for one in field.metadata for name in ("gt", "ge", "le") if hasattr(one, name)}
    low = f"above {bounds['gt']:,}" if "gt" in bounds else f"from {bounds['ge']:,}" if "ge" in bounds else ""
    high = f"to {bounds['le']:,}" if "le" in bounds else ""
    return f"{low} {high}".strip()


def _choices(annotation: Any) -> tuple[Any, ...]:
    if get_origin(annotation) is Literal:
        return get_args(annotation)
    if get_origin(annotation) in (Union, UnionType):
        return next((found for part in get_args(annotation) if (found := _choices(part))), ())
    return _choices(get_args(annotation)[0]) if hasattr(annotation, "__metadata__") else ()


def _resume(settings: type[JobSettings], name: str) -> str:
    free = {*(settings.changeable or ()), *settings.not_stored, *ClusterSettings.model_fields}
    return "yes" if name in free else "no"


if __name__ == "__main__":
    PAGE.write_text(page())
