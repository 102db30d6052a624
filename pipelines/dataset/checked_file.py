"""Files that only the making of something needs, and that a later start goes on from: each with a hash in front.

What is sealed has its hash in the seal. These have none elsewhere, and a byte that changed in one would be a wrong
duplicate or a wrong number, with no word.
"""

import hashlib

from pipelines.dataset.shards import CorruptError
from pipelines.storage.folder import Folder

_HASH = hashlib.sha256().digest_size


def write(folder: Folder, name: str, data: bytes) -> None:
    """Publish a file: the hash of its name and content, then the content."""
    folder.write(name, _digest(name, data) + data)


def read(folder: Folder, name: str) -> bytes:
    """What `write` wrote under this name. Raises CorruptError for anything else, MissingError if it is gone."""
    data = folder.read(name)
    if _digest(name, data[_HASH:]) != data[:_HASH]:
        raise CorruptError(f"{folder}/{name}: damaged; delete it and start the same command again: it is made anew")
    return data[_HASH:]


def _digest(name: str, data: bytes) -> bytes:
    return hashlib.sha256(name.encode() + data).digest()
