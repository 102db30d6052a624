"""Families' configurations for tests."""

from typing import Any

from dcgan.families import registry
from dcgan.families.family import FamilyConfig


def configure(family: str, /, **values: Any) -> FamilyConfig:
    """A family's configuration. Raises ValueError for a value that is not allowed."""
    return registry.configure(family, values)
