"""Intermediate files, with which a later start continues a job. Each begins with a hash of its name and content.

The seal has a hash of every sealed file. Intermediate files are not in a seal; without a hash of their own, a changed
byte would lead to a wrong duplicate or a wrong number without an error.
"""

import hashlib

from pipelines.errors import CorruptError
from pipelines.storage.folder import Folder

_HASH = hashlib.sha256().digest_size


def write(folder: Folder, name: str, data: bytes) -> None:
    """Publish a file: the hash of its name and content, then the content."""
    folder.write(name, _digest(name, data) + data)


def read(folder: Folder, name: str) -> bytes:
    """The content that `write` stored. Raises CorruptError for any other content, MissingError if there is no file."""
    data = folder.read(name)
    if _digest(name, data[_HASH:]) != data[:_HASH]:
        raise CorruptError(
            f"{folder}/{name}: damaged; delete it and start the same command again, which makes it again"
        )
    return data[_HASH:]


def _digest(name: str, data: bytes) -> bytes:
    return hashlib.sha256(name.encode() + data).digest()
