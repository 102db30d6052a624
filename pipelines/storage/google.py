"""gs:// by gcsfs: Google Cloud Storage over its JSON API."""

import os
from typing import Any

# Read when gcsfs is imported. Its newer half talks gRPC, to which none of our time limits apply.
os.environ.setdefault("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")
import aiohttp
from gcsfs.core import GCSFileSystem
from gcsfs.retry import ChecksumError, HttpError
from google.auth.exceptions import GoogleAuthError, RefreshError

from pipelines.storage import endpoints

# A ValueError is an answer that is no JSON, or `Bad Request`.
PASSING = (OSError, aiohttp.ClientError, HttpError, ChecksumError, GoogleAuthError, ValueError)
ENDPOINT = "STORAGE_EMULATOR_HOST"


class _FileSystem(GCSFileSystem):  # type: ignore[misc]  # gcsfs has no types
    async def _request(self, *args: Any, **kwargs: Any) -> Any:
        """Ask once. gcsfs asks six times, logs a traceback at the end, and is asked six times by storage.py."""
        return await GCSFileSystem._request.__wrapped__(self, *args, **kwargs)


def open_filesystem() -> GCSFileSystem:
    """The filesystem. Raises EndpointError for an endpoint that no store can have."""
    fs = _FileSystem(
        # gcsfs has no time limit: a store that says nothing held a job for ever.
        requests_timeout=aiohttp.ClientTimeout(sock_connect=endpoints.CONNECT_S, sock_read=endpoints.READ_S),
        use_listings_cache=False,  # another process may have written since
    )
    endpoints.check_endpoint(ENDPOINT, fs._location)
    return fs


def verdict(error: BaseException) -> str:
    """What an error means; see stores.py."""
    text = " ".join(str(error).split())
    if isinstance(error, FileExistsError):
        return endpoints.EXISTS
    if isinstance(error, FileNotFoundError):
        return endpoints.MISSING
    if isinstance(error, RefreshError):
        return "the credentials have expired or are refused, or this machine's clock is off; sign in again, or set it"
    if isinstance(error, HttpError) and error.code in (401, 416):
        return endpoints.DENIED if error.code == 401 else endpoints.CUT
    if text.startswith("Forbidden: "):
        return endpoints.DENIED
    if text.startswith("Bad Request: ") or (isinstance(error, HttpError) and error.code in (400, 405, 411, 413)):
        return f"refused: {text}"
    return ""


def unreachable(error: BaseException) -> bool:
    """Whether there was no answer at all."""
    return isinstance(error, aiohttp.ClientConnectorError)


def has_bucket(fs: GCSFileSystem, bucket: str) -> bool:
    """Whether the bucket is there. Needs no permission but to list."""
    try:
        fs.call("GET", "b/{}/o", bucket, maxResults=1)
    except FileNotFoundError:
        return False
    return True


def abort_uploads(fs: GCSFileSystem, path: str, older_s: float) -> None:
    """Nothing to do: an upload that is not completed expires after a week, and is not billed."""
