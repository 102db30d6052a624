"""Configurations: old runs keep their identity, and a validation error is one line."""

import pytest
from pydantic import Field, ValidationError
from pydantic.dataclasses import dataclass

from dcgan.configuration import LATER, STRICT, fields, identity, reason


@dataclass(frozen=True, kw_only=True, slots=True, config=STRICT)
class Toy:
    size: int = Field(3, ge=1, description="a size")
    extra: float = Field(0.0, ge=0, json_schema_extra=LATER)


def test_an_identity_leaves_out_a_later_field_that_has_its_default() -> None:
    assert identity(Toy()) == {"size": 3}
    assert identity(Toy(size=3, extra=0.0)) == {"size": 3}
    assert identity(Toy(extra=0.5)) == {"size": 3, "extra": 0.5}


def test_fields_have_descriptions() -> None:
    assert fields(Toy)["size"].description == "a size"
    assert fields(Toy()) == fields(Toy)


@pytest.mark.parametrize(
    ("values", "line"),
    [
        ({"size": 0}, "size is 0; it must be greater than or equal to 1"),
        ({"size": "3"}, "size is '3'; it must be a valid integer"),
        ({"size": True}, "size is True; it must be a valid integer"),
        ({"extra": float("nan")}, "extra is nan; it must be a finite number"),
        ({"other": 1}, "other is 1; Unexpected keyword argument"),
    ],
)
def test_a_validation_error_is_one_line(values: dict[str, object], line: str) -> None:
    with pytest.raises(ValidationError) as caught:
        Toy(**values)  # type: ignore[arg-type]
    assert reason(caught.value) == line
