"""gs:// by gcsfs: Google Cloud Storage over its JSON API."""

import os
from typing import Any

# Read when gcsfs is imported. Its newer half uses gRPC, to which none of our time limits apply.
os.environ.setdefault("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")
import aiohttp
from gcsfs.core import GCSFileSystem
from gcsfs.retry import ChecksumError, HttpError
from google.auth.exceptions import GoogleAuthError, RefreshError

from pipelines.storage import endpoints, object_store
from pipelines.storage.object_store import ObjectStore


class GoogleStore(ObjectStore):
    """A bucket of Google Cloud Storage. An upload that is not completed expires after a week, and is not billed."""

    # A ValueError is an answer that is no JSON, or `Bad Request`.
    passing = (OSError, aiohttp.ClientError, HttpError, ChecksumError, GoogleAuthError, ValueError)
    endpoint = "STORAGE_EMULATOR_HOST"

    def open_filesystem(self) -> GCSFileSystem:
        fs = _FileSystem(
            # gcsfs has no time limit of its own: a store that does not answer would hold a job for ever.
            requests_timeout=aiohttp.ClientTimeout(sock_connect=object_store.CONNECT_S, sock_read=object_store.READ_S),
            use_listings_cache=False,  # another process may have written since
        )
        endpoints.check_endpoint(self.endpoint, fs._location)
        return fs

    def verdict(self, error: BaseException) -> str:
        text = " ".join(str(error).split())
        if isinstance(error, FileExistsError):
            return object_store.EXISTS
        if isinstance(error, FileNotFoundError):
            return object_store.MISSING
        if isinstance(error, RefreshError):
            return (
                "the credentials have expired or are refused, or this machine's clock is wrong; sign in again, or "
                "set the clock"
            )
        if isinstance(error, HttpError) and error.code in (401, 416):
            return object_store.DENIED if error.code == 401 else object_store.CUT
        if text.startswith("Forbidden: "):
            return object_store.DENIED
        if text.startswith("Bad Request: ") or (isinstance(error, HttpError) and error.code in (400, 405, 411, 413)):
            return f"refused: {text}"
        return ""

    def no_answer(self, error: BaseException) -> bool:
        return isinstance(error, aiohttp.ClientConnectorError)

    def has_bucket(self) -> bool:
        try:
            self.fs.call("GET", "b/{}/o", self.bucket, maxResults=1)
        except FileNotFoundError:
            return False
        return True


class _FileSystem(GCSFileSystem):  # type: ignore[misc]  # gcsfs has no types
    async def _request(self, *args: Any, **kwargs: Any) -> Any:
        """Ask once. gcsfs asks six times and logs a traceback at the end; retries.py already repeats a call."""
        return await GCSFileSystem._request.__wrapped__(self, *args, **kwargs)
