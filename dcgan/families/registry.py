"""All families by name. A new family needs a folder beside this module and an entry in FAMILIES."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError
from pydantic.fields import FieldInfo

from dcgan.configuration import fields, reason
from dcgan.families.conditional_dcgan.family import ConditionalDcgan
from dcgan.families.dcgan.family import Dcgan
from dcgan.families.family import Family, FamilyConfig
from dcgan.families.keras_dcgan.family import KerasDcgan
from dcgan.families.mlp_gan.family import MlpGan

if TYPE_CHECKING:
    from dcgan.families.networks import Convolutions, Discriminator, Generator

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


def build(config: FamilyConfig, convolutions: "Convolutions | None" = None) -> tuple["Generator", "Discriminator"]:
    """Both networks of a configuration, channels_last. torch's global random state decides the initial weights."""
    import torch  # takes seconds; whoever asks for settings only does not wait for it

    arguments = (config,) if convolutions is None else (config, convolutions)
    generator_class, discriminator_class = of(config).networks()
    generator, discriminator = generator_class(*arguments), discriminator_class(*arguments)
    return generator.to(memory_format=torch.channels_last), discriminator.to(memory_format=torch.channels_last)


def all_fields() -> dict[str, FieldInfo]:
    """The fields of all families that a user sets. A job offers them as flags."""
    found: dict[str, FieldInfo] = {}
    for one in FAMILIES.values():
        for name, field in fields(one.config).items():
            found.setdefault(name, field)
    del found["num_classes"]  # the dataset decides it
    return found
