"""az:// by adlfs: Azure Blob Storage."""

from typing import Any

import aiohttp
from adlfs import AzureBlobFileSystem
from azure.core.exceptions import AzureError, HttpResponseError, ResourceNotFoundError, ServiceRequestError
from fsspec.asyn import sync

from pipelines.storage import endpoints

PASSING = (OSError, AzureError, aiohttp.ClientError, ValueError)  # the last for an answer that makes no sense
ENDPOINT = "AZURE_STORAGE_CONNECTION_STRING"

_WORDS = {
    "ContainerNotFound": endpoints.NO_BUCKET,
    "ContainerBeingDeleted": "the container is being deleted; wait, or use another",
    "BlobNotFound": endpoints.MISSING,
    "BlobAlreadyExists": endpoints.EXISTS,
    "InvalidRange": endpoints.CUT,
    "InvalidResourceName": "not a container's name; check the URL",
    "AccountIsDisabled": "the storage account is disabled",
}


def open_filesystem() -> AzureBlobFileSystem:
    """The filesystem. Raises EndpointError where the environment has no account, or one where no store can be."""
    try:
        fs = AzureBlobFileSystem(
            use_listings_cache=False,  # another process may have written since
        )
    except ValueError as error:  # its words may quote the connection string
        raise endpoints.EndpointError(
            "no Azure account: set AZURE_STORAGE_CONNECTION_STRING, or AZURE_STORAGE_ACCOUNT_NAME with a key; "
            "if they are set, check their form"
        ) from error.__cause__
    config = fs.service_client._config
    # The client waits 15 s and more between tries, and 60 s for each; adlfs has no setting for them but these.
    config.retry_policy.total_retries = 0
    config.transport.connection_config.timeout = endpoints.CONNECT_S
    config.transport.connection_config.read_timeout = endpoints.READ_S
    endpoints.check_endpoint(ENDPOINT, fs.service_client.primary_endpoint)
    return fs


def verdict(error: BaseException) -> str:
    """What an error means; see stores.py."""
    answer = _answer(error)
    code = getattr(answer, "error_code", "")  # only the storage client's own errors have one
    if code in _WORDS:
        return _WORDS[code]
    if answer and answer.status_code in (401, 403):
        return _refused(str(answer))
    if isinstance(error, FileExistsError):
        return endpoints.EXISTS
    if isinstance(error, FileNotFoundError):
        return endpoints.MISSING
    return ""


def unreachable(error: BaseException) -> bool:
    """Whether there was no answer at all."""
    return isinstance(error, ServiceRequestError)


def has_bucket(fs: AzureBlobFileSystem, bucket: str) -> bool:
    """Whether the container is there. Needs no permission but to list."""

    async def look() -> None:
        async with fs.service_client.get_container_client(bucket) as container:
            async for _ in container.list_blob_names(results_per_page=1):
                return

    try:
        sync(fs.loop, look)
    except ResourceNotFoundError:
        return False
    return True


def abort_uploads(fs: AzureBlobFileSystem, path: str, older_s: float) -> None:
    """Nothing to do: blocks that are not committed are dropped after a week."""


def _refused(text: str) -> str:
    """A 401 or 403. Azure has one code for a wrong key, an expired signature and a clock that is off."""
    if "Request date header" in text:
        return "this machine's clock is off; set it right"
    if "not valid in the specified time frame" in text:
        return "the access signature has expired (or this machine's clock is off); renew it"
    if "MAC signature" in text:
        return "the account key is wrong; check AZURE_STORAGE_CONNECTION_STRING or AZURE_STORAGE_ACCOUNT_KEY"
    return endpoints.DENIED


def _answer(error: BaseException | None) -> Any:
    """The store's own answer behind an exception, or None. adlfs raises its own from inside the handler."""
    while error is not None:
        if isinstance(error, HttpResponseError):
            return error
        error = error.__cause__ or error.__context__
    return None
