"""The errors that a command reports in one line, and their exit statuses."""

from dcgan.model_files import ModelError
from pipelines.dataset.layout import DatasetError
from pipelines.dataset.shards import CorruptError
from pipelines.loading.order import OrderError
from pipelines.sources.base import SourceError
from pipelines.storage.folder import StorageError


class UsageError(ValueError):
    """A user's mistake. One line: the problem, the value, the place, and the remedy."""


class LostWorkError(RuntimeError):
    """Work that was requested and is not done. One line that names the shards."""


USER_ERRORS = (UsageError, StorageError, DatasetError, SourceError, ModelError, OrderError)  # exit status 2
FAILURES = (LostWorkError, CorruptError, OSError)  # exit status 1; OSError: storage that gave up, a full disk
