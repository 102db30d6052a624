"""s3:// by s3fs: AWS and everything that speaks its protocol."""

import os
from collections.abc import Iterator
from datetime import UTC, datetime
from functools import partial
from typing import Any

import aiohttp
from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    NoCredentialsError,
    ParamValidationError,
    PartialCredentialsError,
    ProfileNotFound,
)
from botocore.exceptions import ConnectionError as NoAnswerError
from botocore.parsers import ResponseParserError
from s3fs import S3FileSystem

from pipelines.storage import endpoints, object_store
from pipelines.storage.errors import StorageError
from pipelines.storage.object_store import ObjectStore
from pipelines.storage.store import Attempt

_REASONS = {
    "NoSuchBucket": f"{object_store.NO_BUCKET} and AWS_ENDPOINT_URL",
    "InvalidAccessKeyId": "the store does not know this access key; check AWS_ACCESS_KEY_ID",
    "SignatureDoesNotMatch": "the secret key is wrong; check AWS_SECRET_ACCESS_KEY",
    "ExpiredToken": "the session token has expired; renew it",
    "InvalidToken": "the session token is not valid; renew it",
    "RequestTimeTooSkewed": "this machine's clock is wrong; set it",
    "PermanentRedirect": "the bucket is in another region; set AWS_REGION",
    "301": "the bucket is in another region; set AWS_REGION",  # the answer to a HEAD has no other code
    "AuthorizationHeaderMalformed": "the bucket is in another region; set AWS_REGION",
    "InvalidRange": object_store.CUT,
    "InvalidBucketName": "not a bucket's name; check the URL",
    "PreconditionFailed": object_store.EXISTS,
    "ConditionalRequestConflict": object_store.EXISTS,
    "NoSuchUpload": "",  # completed before, with the answer lost, or forgotten by the store: everything is sent again
}


class S3Store(ObjectStore):
    """A bucket of AWS S3, or of any server that speaks its protocol."""

    # A body that was cut short is an aiohttp.ClientError, and an answer that makes no sense (from a gateway, say) a
    # ResponseParserError; neither is an OSError.
    passing = (OSError, BotoCoreError, ClientError, ResponseParserError, aiohttp.ClientError)
    endpoint = "AWS_ENDPOINT_URL"

    def open_filesystem(self) -> S3FileSystem:
        endpoint = os.environ.get(self.endpoint, "")
        if endpoint and "://" not in endpoint:
            raise StorageError(f"{self.endpoint} is {endpoint}: not a URL; write http://{endpoint}")
        fs = S3FileSystem(
            config_kwargs={
                "retries": {"mode": "standard", "max_attempts": 2},  # below each of ours: more would multiply the waits
                "connect_timeout": object_store.CONNECT_S,
                "read_timeout": object_store.READ_S,
            },
            use_listings_cache=False,  # another process may have written since: every listing asks the store
        )
        fs.retries = 1  # s3fs has its own loop of 5 between ours and the client's: a lost call took 5 minutes
        endpoints.check_endpoint(self.endpoint, fs.connect().meta.endpoint_url)  # may come from a profile in ~/.aws
        return fs

    def verdict(self, error: BaseException) -> str:
        code = _code(error)
        if code in _REASONS:
            return _REASONS[code]
        if isinstance(error, FileExistsError):
            return object_store.EXISTS
        if isinstance(error, NoCredentialsError | PartialCredentialsError):
            return "no credentials; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
        if isinstance(error, ProfileNotFound):
            return f"{error}; check AWS_PROFILE"
        if isinstance(error, PermissionError):
            return object_store.DENIED
        if isinstance(error, ParamValidationError):
            return _REASONS["InvalidBucketName"]
        if isinstance(error, FileNotFoundError):
            return object_store.MISSING
        return ""

    def no_answer(self, error: BaseException) -> bool:
        return isinstance(error, NoAnswerError)

    def has_bucket(self) -> bool:
        """True: S3 itself reports which of bucket and file is missing (except to a HEAD; then the next call fails)."""
        return True

    def walk(self, path: str, attempt: Attempt) -> Iterator[tuple[str, int]]:
        """As Store.walk, a page at a time: memory does not grow with the number of files."""
        prefix = path.partition("/")[2].rstrip("/")
        prefix = f"{prefix}/" if prefix else ""
        after: dict[str, str] = {}
        while True:
            request = {"Bucket": self.bucket, "Prefix": prefix, **after}
            page = attempt(partial(self.ask, "call_s3", "list_objects_v2", **request))
            for entry in page.get("Contents", ()):
                name = entry["Key"][len(prefix) :]
                if name and not name.endswith("/"):  # an object that stands for a folder
                    yield name, int(entry["Size"])
            if not page.get("IsTruncated"):
                return
            after = {"ContinuationToken": page["NextContinuationToken"]}

    def abort_uploads(self, path: str, older_s: float) -> None:
        """As Store.abort_uploads: S3 keeps and bills the parts of a multipart upload until somebody aborts it."""
        now = datetime.now(UTC)
        for upload in self._uploads(path.partition("/")[2]):
            if (now - upload["Initiated"]).total_seconds() >= older_s:
                key, number = upload["Key"], upload["UploadId"]
                self.fs.call_s3("abort_multipart_upload", Bucket=self.bucket, Key=key, UploadId=number)

    def _uploads(self, prefix: str) -> Iterator[dict[str, Any]]:
        prefix = f"{prefix}/" if prefix else ""
        after: dict[str, str] = {}
        while True:
            page = self.fs.call_s3("list_multipart_uploads", Bucket=self.bucket, Prefix=prefix, **after)
            yield from page.get("Uploads", [])
            if not page.get("IsTruncated"):
                return
            after = {"KeyMarker": page["NextKeyMarker"], "UploadIdMarker": page["NextUploadIdMarker"]}


def _code(error: BaseException | None) -> str:
    """The store's own error code behind an exception, or ''. s3fs keeps it in the chain of causes."""
    while error is not None:
        if isinstance(error, ClientError):
            return str(error.response.get("Error", {}).get("Code", ""))
        error = error.__cause__
    return ""
