"""All families by name. A new family needs a module beside this one and an entry in FAMILIES."""

from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError
from pydantic.fields import FieldInfo

from dcgan.configuration import fields, reason
from dcgan.families.conditional_dcgan import ConditionalDcgan
from dcgan.families.dcgan import Dcgan
from dcgan.families.family import PLAIN, Convolutions, Discriminator, Family, FamilyConfig, Generator
from dcgan.families.keras_dcgan import KerasDcgan
from dcgan.families.mlp_gan import MlpGan

FAMILIES: dict[str, Family] = {family.name: family for family in (Dcgan(), ConditionalDcgan(), KerasDcgan(), MlpGan())}
DEFAULT = next(iter(FAMILIES))


def family(name: str) -> Family:
    """The family with this name. Raises ValueError if there is none."""
    if name not in FAMILIES:
        raise ValueError(f"network is {name!r}; it must be one of {', '.join(FAMILIES)}")
    return FAMILIES[name]


def of(config: FamilyConfig) -> Family:
    """The family of a configuration."""
    return FAMILIES[config.family]


def configure(name: str, values: Mapping[str, Any]) -> FamilyConfig:
    """A family's configuration. Raises ValueError with the field, its value and the allowed values."""
    kind = family(name).config
    try:
        return kind(**values)
    except ValidationError as error:
        raise ValueError(reason(error)) from error


def build(config: FamilyConfig, convolutions: Convolutions = PLAIN) -> tuple[Generator, Discriminator]:
    """Both networks of a configuration. torch's global random state decides the initial weights."""
    return of(config).build(config, convolutions)


def all_fields() -> dict[str, FieldInfo]:
    """The fields of all families that a user sets. A job offers them as flags."""
    found: dict[str, FieldInfo] = {}
    for one in FAMILIES.values():
        for name, field in fields(one.config).items():
            found.setdefault(name, field)
    del found["num_classes"]  # the dataset decides it
    return found
