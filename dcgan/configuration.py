"""Configurations: frozen dataclasses whose fields carry their bounds and their meaning.

They are pydantic dataclasses, so a field is stated once: the job's flags, the documentation and the checks are made
from it.
"""

from dataclasses import asdict
from typing import Any

from pydantic import ConfigDict, ValidationError
from pydantic.fields import FieldInfo

STRICT = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)
# Mark of a field that came later, with a default that means "as before": at its default it is not in an identity, so
# that older runs keep theirs. Use as Field(..., json_schema_extra=LATER).
LATER: dict[str, Any] = {"later": True}


def fields(config: Any) -> dict[str, FieldInfo]:
    """The fields of a configuration class or object, by name."""
    found: dict[str, FieldInfo] = config.__pydantic_fields__
    return found


def identity(config: Any) -> dict[str, Any]:
    """A configuration as it stands in a run's identity: every field, but no LATER one that is at its default."""
    later = {name for name, field in fields(config).items() if field.json_schema_extra == LATER}
    values = asdict(config)
    return {name: value for name, value in values.items() if name not in later or value != fields(config)[name].default}


def reason(error: ValidationError) -> str:
    """The first complaint about a configuration as one line that names the field, its value and what is allowed."""
    first = error.errors()[0]
    text = first["msg"].removeprefix("Value error, ").replace("Input should be", "it must be")
    field = ".".join(map(str, first["loc"]))
    return f"{field} is {first['input']!r}; {text}" if field else text
