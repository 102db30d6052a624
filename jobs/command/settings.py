"""The settings of a command: flags, an optional TOML file and the environment fill one validated object.

Precedence: flags, GANMILL_* variables, --config FILE, the command's own preset (train's recipe), defaults.
"""

import argparse
import difflib
import os
import re
import tomllib
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, NoReturn, TypeVar

from pydantic import AfterValidator, BeforeValidator, Field, ValidationError, ValidationInfo
from pydantic_settings import (
    BaseSettings,
    CliSettingsSource,
    EnvSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
)

from jobs.command import environment
from jobs.command.errors import UsageError
from pipelines.dataset.attribution import Attribution, Licence, Line, Text
from pipelines.storage.folder import StorageError, normalise

S = TypeVar("S", bound="JobSettings")


# An autoscaler needs minutes for a machine with a GPU, and the machine needs more to pull an image of 10 GB.
WAIT_S = 900
_MAX_CONFIG_BYTES = 1 << 20
_SHOWN = 100  # characters of a value in a message
_UNPRINTABLE = re.compile(r"[\x00-\x08\x0a-\x1f\x7f\ud800-\udfff]")
_WHOLE = "must be a whole number, as 1000 or 1e3"


def whole(value: object) -> object:
    """Accepts `1e6` as a whole number, and refuses TOML's `true`."""
    if isinstance(value, bool):
        raise ValueError(_WHOLE)
    if isinstance(value, str) and re.fullmatch(r"[+-]?\d+", value.strip()):
        return int(value)
    if isinstance(value, str) and re.fullmatch(r"[+-]?(\d+\.?\d*|\.\d+)[eE]\+?\d+", value.strip()):
        value = float(value)
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _url(value: object, info: ValidationInfo) -> object:
    """An absolute path or URL. `{root}` stands for the setting of that name."""
    if not isinstance(value, str):
        return value
    value = value.replace("{root}", str(info.data.get("root", "{root}")))
    relative = "://" not in value and not os.path.isabs(os.path.expanduser(value))
    if relative and _in_submitted_job():
        raise ValueError(
            "a relative path would vanish with the submitted job's working directory; set GANMILL_ROOT or --root to a "
            "URL, or to an absolute path that every node can reach"
        )
    try:
        return normalise(value)
    except StorageError as error:
        raise ValueError(str(error)) from error


def _gpu_share(value: float) -> float:
    """Ray assigns a part of one GPU, or whole ones."""
    if value > 1 and not value.is_integer():
        raise ValueError("above 1 it must be a whole number of GPUs")
    return value


def _in_submitted_job() -> bool:
    return "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ  # set by Ray's job supervisor for the entrypoint


Number = Annotated[int, BeforeValidator(whole)]
Channels = Annotated[Literal[1, 3], BeforeValidator(whole)]
Url = Annotated[str, BeforeValidator(_url)]
GpuShare = Annotated[float, Field(ge=0.001, le=8), AfterValidator(_gpu_share)]


_ELSEWHERE = (
    "Every flag can also be set in --config FILE (shard_size = 1000) or in the environment (GANMILL_SHARD_SIZE)."
)


class JobSettings(BaseSettings):
    """The settings that every command has. A field is a flag: `shard_size` is `--shard-size` and GANMILL_SHARD_SIZE.

    `not_stored`: settings of one start, which leave no trace in the output. `resumable`: the command continues where
    it was stopped. `changeable`: the stored settings that may differ then; None for a command that claims no output.
    """

    model_config = SettingsConfigDict(extra="forbid", frozen=True, validate_default=True, allow_inf_nan=False)
    not_stored: ClassVar[frozenset[str]] = frozenset({"root", "workers", "wait_s"})
    resumable: ClassVar[bool] = True
    changeable: ClassVar[frozenset[str] | None] = None
    command: ClassVar[str]
    about: ClassVar[str]
    examples: ClassVar[tuple[str, ...]] = ()

    root: Url = Field("ganmill-data", description="where everything is kept: a path or a URL (file, s3, gs, az)")
    config: Path | None = Field(None, description="TOML file of settings, one `name = value` a line")
    verbose: bool = Field(False, description="print Ray's own output too")

    @classmethod
    def settings_customise_sources(  # type: ignore[override]  # the names that are not used here are in _
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        **_: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        return (init_settings,)  # load() merges the other sources: it refuses unknown names by source

    @classmethod
    def preset(cls, values: dict[str, Any]) -> dict[str, Any]:
        """The command's own values, below all other sources, given the values so far."""
        return {}

    def describe(self) -> dict[str, Any]:
        """The settings as plain values, for printing."""
        return {k: v for k, v in self.model_dump(mode="json", exclude={"config", "verbose"}).items() if v is not None}

    def stored(self) -> dict[str, Any]:
        """The settings that are stored beside the output: all but `not_stored`."""
        return {k: v for k, v in self.describe().items() if k not in self.not_stored}


class ClusterSettings(JobSettings):
    """The settings of the commands that run on Ray."""

    wait_s: Number = Field(
        WAIT_S,
        ge=0,
        le=10**7,
        description="seconds to wait until the cluster of RAY_ADDRESS has room for the workers",
    )


class CardSettings(ClusterSettings):
    """The settings of the commands that make a dataset: facts for its cards."""

    title: Line | None = Field(None, description="title of the dataset in its cards; default: a count of its images")
    licence: Licence | None = Field(
        None, description="licence in the cards: an SPDX identifier as CC-BY-4.0, a URL, or a text"
    )
    citation: Text | None = Field(None, description="how to cite the dataset, in the cards: BibTeX or a text")

    def asked(self) -> Attribution:
        """The facts that were given."""
        return Attribution(title=self.title, licence=self.licence, citation=self.citation)


class _Parser(argparse.ArgumentParser):
    """argparse that raises UsageError, and suggests the nearest flag."""

    def format_help(self) -> str:
        return re.sub(r"\s*\(default:\s+null\)", "", super().format_help())

    def error(self, message: str) -> NoReturn:
        unknown = re.match(r"unrecognized arguments: (\S+)", message)
        if unknown:
            flag = unknown[1].split("=")[0]
            raise UsageError(f"unknown flag {flag}{_nearest(flag, self._option_string_actions)}")
        raise UsageError(message)


def load(settings: type[S], argv: list[str]) -> S:
    """The settings of a command. Raises UsageError for an unknown name or a value that is not allowed."""
    epilog = "examples:\n" + "\n".join(f"  {line}" for line in settings.examples)
    parser = _Parser(
        prog=f"jobs/{settings.command}.py",
        description=settings.about,
        epilog=f"{epilog}\n\n{_ELSEWHERE}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    flags = CliSettingsSource(
        settings,
        root_parser=parser,
        cli_parse_args=argv,
        cli_kebab_case=True,
        cli_implicit_flags=True,
        cli_hide_none_type=True,
    )()
    if unknown := environment.unknown(os.environ, settings.model_fields):
        known = map(_variable, environment.NAMES | settings.model_fields.keys())
        raise UsageError(f"{unknown} in the environment: unknown setting{_nearest(unknown, known)}")
    variables = EnvSettingsSource(settings, env_prefix=environment.PREFIX, env_ignore_empty=True)()
    for given, label in ((flags, _flag), (variables, _variable)):
        _check_text(given, label)
    config = flags.get("config") or variables.get("config")
    file = read_toml(settings, Path(config)) if config else {}
    values = {**file, **variables, **flags}
    values = {**settings.preset(values), **values}
    try:
        return settings(**values)
    except ValidationError as error:
        origins = {name: f"{config}: {name}" for name in file}
        origins |= {name: _variable(name) for name in variables}
        raise UsageError(_first(error, {**origins, **{name: _flag(name) for name in flags}})) from error


def read_toml(settings: type[JobSettings], path: Path) -> dict[str, Any]:
    """A TOML file's settings. Raises UsageError if it cannot be read or names an unknown setting."""
    try:
        with path.open("rb") as file:
            data = file.read(_MAX_CONFIG_BYTES + 1)
        values = tomllib.loads(data.decode("utf-8-sig")) if len(data) <= _MAX_CONFIG_BYTES else None
    except UnicodeDecodeError as error:
        raise UsageError(f"{path}: cannot be read: not UTF-8; save it as UTF-8") from error
    except (OSError, ValueError, RecursionError) as error:  # ValueError: tomllib's own; also a number of 5,000 digits
        raise UsageError(f"{path}: cannot be read: {getattr(error, 'strerror', None) or error}") from error
    if values is None:
        raise UsageError(f"{path}: more than 1 MiB; is this a file of settings?")
    for name in values:
        if name not in settings.model_fields:
            raise UsageError(f"{path}: unknown setting {name!r}{_nearest(name, settings.model_fields)}")
    _check_text(values, lambda name: f"{path}: {name}")
    return values


def _check_text(values: Mapping[str, Any], label: Callable[[str], str]) -> None:
    """Raises UsageError for text with control characters or with bytes that are not UTF-8."""
    for name, value in values.items():
        if isinstance(value, str) and _UNPRINTABLE.search(value):
            shown = ascii(value)[:_SHOWN]
            raise UsageError(f"{label(name)} {shown}: control characters and bytes that are not UTF-8 are not allowed")


def _nearest(name: str, known: Iterable[str]) -> str:
    match = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f"; did you mean {match[0]}?" if match else "; see --help"


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def _variable(name: str) -> str:
    return f"{environment.PREFIX}{name.upper()}"


def _first(error: ValidationError, origins: dict[str, str]) -> str:
    """Pydantic's first error as one line. `origins`: for each given setting, the source to name in the line."""
    first = error.errors()[0]
    if not first["loc"]:
        return first["msg"]
    name = str(first["loc"][0])
    label = origins.get(name, _flag(name))
    if first["type"] == "missing":
        return f"{label} is required; see --help"
    reason = first["msg"].removeprefix("Value error, ").replace("Input should be", "must be")
    if isinstance(getattr(first.get("ctx", {}).get("error"), "__cause__", None), StorageError):
        return f"{label}: {reason}"  # it names the URL, without credentials that may be in it
    given = str(first["input"])
    given = given if len(given) <= _SHOWN else f"{given[: _SHOWN - 3]}..."
    return f"{label} {given}: {_WHOLE if first['type'].startswith('int_') else reason}"
