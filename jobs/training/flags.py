"""Flags from configurations: a field of a family's networks or of the method is stated once, in `dcgan`."""

from collections.abc import Mapping
from typing import Annotated, Any, TypeVar, get_args

from pydantic import BeforeValidator, create_model
from pydantic.fields import FieldInfo

from jobs.command.settings import JobSettings, whole

S = TypeVar("S", bound=JobSettings)


def with_fields(settings: type[S], found: Mapping[str, FieldInfo]) -> type[S]:
    """A settings class with these fields besides; whole numbers may be written 1e3, as in every setting."""
    added: dict[str, Any] = {name: (_flag_type(field.annotation), field) for name, field in found.items()}
    return create_model(settings.__name__, __base__=settings, **added)


def _flag_type(annotation: Any) -> Any:
    is_whole = annotation is int or {*map(type, get_args(annotation))} == {int}
    return Annotated[annotation, BeforeValidator(whole)] if is_whole else annotation
