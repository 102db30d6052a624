"""The errors of datasets and sources, apart from the code that raises them: whoever reports them imports little."""


class DatasetError(ValueError):
    """A dataset that is missing, not sealed, or not as requested. The text says what to do."""


class CorruptError(ValueError):
    """Bytes that differ from those that were written. The text names the file."""


class SourceError(ValueError):
    """A source that cannot be ingested as requested. The text says what to do."""


class OrderError(ValueError):
    """A batch, a dataset and a number of workers that do not fit together. The text says what does."""
