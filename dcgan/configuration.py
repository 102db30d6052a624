"""Configurations: frozen dataclasses whose fields carry their bounds and their descriptions.

They are pydantic dataclasses. A field is stated once; the job's flags, the documentation and the checks come from it.
"""

from dataclasses import asdict
from typing import Any

from pydantic import ConfigDict, ValidationError
from pydantic.fields import FieldInfo

STRICT = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)
# Marks a field that was added after the first release. Its default means "as before". An identity leaves the field out
# while it has its default, so older runs keep their identity. Usage: Field(..., json_schema_extra=LATER).
LATER: dict[str, Any] = {"later": True}


def fields(config: Any) -> dict[str, FieldInfo]:
    """The fields of a configuration class or object, by name."""
    found: dict[str, FieldInfo] = config.__pydantic_fields__
    return found


def identity(config: Any) -> dict[str, Any]:
    """A configuration as a run's identity holds it: every field, except LATER fields that have their default."""
    later = {name for name, field in fields(config).items() if field.json_schema_extra == LATER}
    values = asdict(config)
    return {name: value for name, value in values.items() if name not in later or value != fields(config)[name].default}


def reason(error: ValidationError) -> str:
    """The first validation error as one line: the field, its value and the allowed values."""
    first = error.errors()[0]
    text = first["msg"].removeprefix("Value error, ").replace("Input should be", "it must be")
    field = ".".join(map(str, first["loc"]))
    return f"{field} is {first['input']!r}; {text}" if field else text
