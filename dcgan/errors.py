"""Errors that others report. This module imports nothing."""


class ModelError(ValueError):
    """The files are not a model that this version can use."""
