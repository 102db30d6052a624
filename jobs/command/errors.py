"""The errors that a command reports in one line, and their exit statuses."""

from dcgan.errors import ModelError
from pipelines.errors import CorruptError, DatasetError, OrderError, SourceError
from pipelines.storage.folder import StorageError


class UsageError(ValueError):
    """A user's mistake. One line: the problem, the value, the place, and the remedy."""


class LostWorkError(RuntimeError):
    """Work that was requested and is not done. One line that names the shards."""


USER_ERRORS = (UsageError, StorageError, DatasetError, SourceError, ModelError, OrderError)  # exit status 2
FAILURES = (LostWorkError, CorruptError, OSError)  # exit status 1; OSError: storage that gave up, a full disk
