"""The errors of storage. Each text names the place and what to do."""


class StorageError(OSError):
    """Storage that cannot be used as requested: missing, refused or not allowed. Another attempt does not help."""


class MissingError(StorageError):
    """No such file or object."""


class TooLargeError(StorageError):
    """A file with more bytes than its kind may have. The rest was not read."""


class UnreachableError(StorageError):
    """A store that does not answer: its address is wrong, or it was down during all attempts."""
