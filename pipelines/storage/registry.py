"""All stores by the scheme of their URLs. A new store is a module beside this one and a line here."""

import os
from urllib.parse import urlsplit

from pipelines.storage.errors import StorageError
from pipelines.storage.local import LocalStore
from pipelines.storage.store import Store

SCHEMES = ("file", "s3", "gs", "az")


def open_store(url: str) -> Store:
    """The store of a URL. Only its users import its library: gs and az are extras, and s3fs takes a second."""
    scheme, path = split(url)
    bucket = path.partition("/")[0]
    if scheme == "file":
        return LocalStore()
    if scheme == "s3":
        from pipelines.storage.s3 import S3Store

        return S3Store(bucket)
    try:
        if scheme == "gs":
            from pipelines.storage.google import GoogleStore

            return GoogleStore(bucket)
        from pipelines.storage.azure import AzureStore

        return AzureStore(bucket)
    except ImportError as error:
        raise StorageError(f"{url}: {scheme}:// needs another package: pip install 'ganmill[{scheme}]'") from error


def normalise(url: str) -> str:
    """A URL as ganmill writes it: absolute, no trailing slash. Raises StorageError if it is not allowed."""
    if not url:
        raise StorageError("an empty path: give a folder or a URL")
    if "://" not in url:
        return os.path.abspath(os.path.expanduser(url))
    parts = urlsplit(url)
    if parts.username or parts.password or parts.query:
        raise StorageError(
            f"{parts.scheme}://{parts.hostname}...: no credentials or options in a URL; set them in the environment"
        )
    if parts.scheme not in SCHEMES:
        raise StorageError(f"{url}: scheme {parts.scheme!r} is not one of {', '.join(SCHEMES)}")
    if parts.scheme == "file":
        if parts.netloc:
            raise StorageError(f"{url}: a local file has no host; write file:///{parts.netloc}{parts.path}")
        return os.path.abspath(parts.path)
    if not parts.netloc:
        raise StorageError(f"{url}: no bucket; write {parts.scheme}://bucket/prefix")
    return f"{parts.scheme}://{url.split('://', 1)[1]}".rstrip("/")


def split(url: str) -> tuple[str, str]:
    """Scheme and path of a normalised URL."""
    if "://" not in url:
        return "file", url
    scheme, path = url.split("://", 1)
    return scheme, path
