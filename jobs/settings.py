"""Settings of a command: flags, an optional TOML file and the environment fill one validated object.

Order, first wins: flags, GANMILL_* variables, --config FILE, what the command itself adds (train's recipe), defaults.
"""

import argparse
import difflib
import os
import re
import sys
import tomllib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, NoReturn, TypeVar

from pydantic import BeforeValidator, Field, ValidationError, ValidationInfo
from pydantic_settings import (
    BaseSettings,
    CliSettingsSource,
    EnvSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
)

from dcgan.model_files import ModelError
from pipelines import storage
from pipelines.dataset import CorruptError, DatasetError
from pipelines.order import OrderError
from pipelines.sources import SourceError
from pipelines.storage import StorageError

S = TypeVar("S", bound="JobSettings")


class UsageError(ValueError):
    """A user's mistake: one line that says what, which value, where, and what to do."""


class LostWorkError(RuntimeError):
    """Work that was to be done and is not: exit status 1, naming the shards."""


USER_ERRORS = (UsageError, StorageError, DatasetError, SourceError, ModelError, OrderError)
FAILURES = (LostWorkError, CorruptError, OSError)  # OSError: storage that gave up, a full disk


_WHOLE = "must be a whole number, as 1000 or 1e3"


def _whole(value: object) -> object:
    """`1e6` is a whole number too; TOML's `true` is none."""
    if isinstance(value, bool):
        raise ValueError(_WHOLE)
    if isinstance(value, str) and re.fullmatch(r"[+-]?\d+", value.strip()):
        return int(value)
    if isinstance(value, str) and re.fullmatch(r"[+-]?(\d+\.?\d*|\.\d+)[eE]\+?\d+", value.strip()):
        value = float(value)
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _url(value: object, info: ValidationInfo) -> object:
    """A path or URL, absolute; `{root}` stands for the setting of that name."""
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
        return storage.normalise(value)
    except StorageError as error:
        raise ValueError(str(error)) from error


def _in_submitted_job() -> bool:
    return "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ  # set by Ray's job supervisor for the entrypoint


Number = Annotated[int, BeforeValidator(_whole)]
Channels = Annotated[Literal[1, 3], BeforeValidator(_whole)]
Url = Annotated[str, BeforeValidator(_url)]


_ELSEWHERE = "Every flag can stand in --config FILE (shard_size = 1000) or in the environment (GANMILL_SHARD_SIZE)."


class JobSettings(BaseSettings):
    """What every command has. A field is a flag: `shard_size` is `--shard-size` and GANMILL_SHARD_SIZE."""

    model_config = SettingsConfigDict(extra="forbid", frozen=True, validate_default=True)
    passing: ClassVar[frozenset[str]] = frozenset({"root", "workers"})  # how this one start runs, not what it makes
    command: ClassVar[str]
    about: ClassVar[str]
    examples: ClassVar[tuple[str, ...]] = ()

    root: Url = Field("ganmill-data", description="where everything is kept: a path or a URL (file, s3, gs, az)")
    config: Path | None = Field(None, description="TOML file of settings, one `name = value` a line")
    verbose: bool = Field(False, description="print what Ray prints too")

    @classmethod
    def settings_customise_sources(  # type: ignore[override]  # the names that are not used here are in _
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        **_: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        return (init_settings,)  # load() merges the rest, so that each source's unknown names can be refused

    @classmethod
    def preset(cls, values: dict[str, Any]) -> dict[str, Any]:
        """Settings that the command itself adds, below all others, given those made so far."""
        return {}

    def describe(self) -> dict[str, Any]:
        """The settings as plain values, as they are printed."""
        return {k: v for k, v in self.model_dump(mode="json", exclude={"config", "verbose"}).items() if v is not None}

    def stored(self) -> dict[str, Any]:
        """The settings that are stored beside the output: without those that leave no trace in it."""
        return {k: v for k, v in self.describe().items() if k not in self.passing}


class _Parser(argparse.ArgumentParser):
    """argparse that raises instead of printing its usage, and knows the nearest flag."""

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
    environment = EnvSettingsSource(settings, env_prefix="GANMILL_", env_ignore_empty=True)()
    config = flags.get("config") or environment.get("config")
    file = read_toml(settings, Path(config)) if config else {}
    values = {**file, **environment, **flags}
    values = {**settings.preset(values), **values}
    try:
        return settings(**values)
    except ValidationError as error:
        origins = {name: f"{config}: {name}" for name in file}
        origins |= {name: f"GANMILL_{name.upper()}" for name in environment}
        raise UsageError(_first(error, {**origins, **{name: _flag(name) for name in flags}})) from error


def read_toml(settings: type[JobSettings], path: Path) -> dict[str, Any]:
    """A TOML file's settings. Raises UsageError if it cannot be read or names what the command does not have."""
    try:
        values = tomllib.loads(path.read_text())
    except (OSError, tomllib.TOMLDecodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UsageError(f"{path}: cannot be read: {reason}") from error
    for name in values:
        if name not in settings.model_fields:
            raise UsageError(f"{path}: unknown setting {name!r}{_nearest(name, settings.model_fields)}")
    return values


def run(main: Callable[[S], None], settings: type[S]) -> None:
    """Load the settings, print them, call main; mistakes are one line and status 2, lost work is status 1."""
    try:
        loaded = load(settings, sys.argv[1:])
        print(f"ganmill {settings.command}: " + ", ".join(f"{k}={v}" for k, v in loaded.describe().items()), flush=True)
        main(loaded)
    except USER_ERRORS as error:
        _leave(settings.command, error, 2)
    except FAILURES as error:
        _leave(settings.command, error, 1)
    except KeyboardInterrupt:
        print(f"\n{settings.command}: stopped; the same command goes on from here", file=sys.stderr)
        sys.exit(130)


def _leave(command: str, error: Exception, status: int) -> NoReturn:
    print(f"{command}: error: {error}", file=sys.stderr, flush=True)
    sys.exit(status)


def _nearest(name: str, known: Iterable[str]) -> str:
    match = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f"; did you mean {match[0]}?" if match else "; see --help"


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def _first(error: ValidationError, origins: dict[str, str]) -> str:
    """The first of pydantic's complaints, as one line. `origins`: what to call the settings that were given."""
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
    return f"{label} {first['input']}: {_WHOLE if first['type'].startswith('int_') else reason}"
