"""s3:// by s3fs: AWS and everything that speaks its protocol."""

import os
from collections.abc import Iterator
from datetime import UTC, datetime
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

from pipelines.storage import endpoints

# A body that was cut short is an aiohttp.ClientError, and an answer that makes no sense (from a gateway, say) a
# ResponseParserError; neither is an OSError.
PASSING = (OSError, BotoCoreError, ClientError, ResponseParserError, aiohttp.ClientError)
ENDPOINT = "AWS_ENDPOINT_URL"

_WORDS = {
    "NoSuchBucket": f"{endpoints.NO_BUCKET} and AWS_ENDPOINT_URL",
    "InvalidAccessKeyId": "the store does not know this access key; check AWS_ACCESS_KEY_ID",
    "SignatureDoesNotMatch": "the secret key is wrong; check AWS_SECRET_ACCESS_KEY",
    "ExpiredToken": "the session token has expired; renew it",
    "InvalidToken": "the session token is not valid; renew it",
    "RequestTimeTooSkewed": "this machine's clock is off; set it right",
    "PermanentRedirect": "the bucket is in another region; set AWS_REGION",
    "301": "the bucket is in another region; set AWS_REGION",  # a HEAD's answer has no other code
    "AuthorizationHeaderMalformed": "the bucket is in another region; set AWS_REGION",
    "InvalidRange": endpoints.CUT,
    "InvalidBucketName": "not a bucket's name; check the URL",
    "PreconditionFailed": endpoints.EXISTS,
    "ConditionalRequestConflict": endpoints.EXISTS,
    "NoSuchUpload": "",  # its completion was done and the answer lost, or the store forgot it: the whole is sent again
}


def open_filesystem() -> S3FileSystem:
    """The filesystem. Raises EndpointError for an endpoint that is no URL or that no store can have."""
    endpoint = os.environ.get(ENDPOINT, "")
    if endpoint and "://" not in endpoint:
        raise endpoints.EndpointError(f"{ENDPOINT} is {endpoint}: not a URL; write http://{endpoint}")
    fs = S3FileSystem(
        config_kwargs={
            "retries": {"mode": "standard", "max_attempts": 2},  # under each of ours: more would multiply the waits
            "connect_timeout": endpoints.CONNECT_S,
            "read_timeout": endpoints.READ_S,
        },
        use_listings_cache=False,  # another process may have written since: every listing asks the store
    )
    fs.retries = 1  # s3fs's own loop of 5 lies between ours and the client's: a lost call took 5 minutes
    endpoints.check_endpoint(ENDPOINT, fs.connect().meta.endpoint_url)  # from a profile in ~/.aws too
    return fs


def verdict(error: BaseException) -> str:
    """What an error means; see stores.py."""
    code = _code(error)
    if code in _WORDS:
        return _WORDS[code]
    if isinstance(error, FileExistsError):
        return endpoints.EXISTS
    if isinstance(error, NoCredentialsError | PartialCredentialsError):
        return "no credentials; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
    if isinstance(error, ProfileNotFound):
        return f"{error}; check AWS_PROFILE"
    if isinstance(error, PermissionError):
        return endpoints.DENIED
    if isinstance(error, ParamValidationError):
        return _WORDS["InvalidBucketName"]
    if isinstance(error, FileNotFoundError):
        return endpoints.MISSING
    return ""


def unreachable(error: BaseException) -> bool:
    """Whether there was no answer at all."""
    return isinstance(error, NoAnswerError)


def has_bucket(fs: S3FileSystem, bucket: str) -> bool:
    """True: S3 itself says which of bucket and file is missing (but to a HEAD, and then the next call fails)."""
    return True


def abort_uploads(fs: S3FileSystem, path: str, older_s: float) -> None:
    """Abort the multipart uploads below a path that were begun and not completed: their parts are billed for ever."""
    now = datetime.now(UTC)
    for upload in _uploads(fs, path):
        if (now - upload["Initiated"]).total_seconds() >= older_s:
            bucket = path.partition("/")[0]
            fs.call_s3("abort_multipart_upload", Bucket=bucket, Key=upload["Key"], UploadId=upload["UploadId"])


def _uploads(fs: S3FileSystem, path: str) -> Iterator[dict[str, Any]]:
    bucket, _, prefix = path.partition("/")
    after: dict[str, str] = {}
    while True:
        page = fs.call_s3("list_multipart_uploads", Bucket=bucket, Prefix=f"{prefix}/" if prefix else "", **after)
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
