"""az:// by adlfs: Azure Blob Storage."""

from typing import Any

import aiohttp
from adlfs import AzureBlobFileSystem
from azure.core.exceptions import AzureError, HttpResponseError, ResourceNotFoundError, ServiceRequestError
from fsspec.asyn import sync

from pipelines.storage import endpoints, object_store
from pipelines.storage.errors import StorageError
from pipelines.storage.object_store import ObjectStore

_REASONS = {
    "ContainerNotFound": object_store.NO_BUCKET,
    "ContainerBeingDeleted": "the container is being deleted; wait, or use another",
    "BlobNotFound": object_store.MISSING,
    "BlobAlreadyExists": object_store.EXISTS,
    "InvalidRange": object_store.CUT,
    "InvalidResourceName": "not a container's name; check the URL",
    "AccountIsDisabled": "the storage account is disabled",
}


class AzureStore(ObjectStore):
    """A container of Azure Blob Storage. Azure drops blocks that are not committed after a week."""

    passing = (OSError, AzureError, aiohttp.ClientError, ValueError)  # the last for an answer that is no answer
    endpoint = "AZURE_STORAGE_CONNECTION_STRING"

    def open_filesystem(self) -> AzureBlobFileSystem:
        try:
            fs = AzureBlobFileSystem(
                use_listings_cache=False,  # another process may have written since
            )
        except ValueError as error:  # its text may quote the connection string
            raise StorageError(
                "no Azure account: set AZURE_STORAGE_CONNECTION_STRING, or AZURE_STORAGE_ACCOUNT_NAME with a key; "
                "if they are set, check their form"
            ) from error.__cause__
        config = fs.service_client._config
        # The client waits 15 s and more between tries, and 60 s for each; adlfs has no setting for them but these.
        config.retry_policy.total_retries = 0
        config.transport.connection_config.timeout = object_store.CONNECT_S
        config.transport.connection_config.read_timeout = object_store.READ_S
        endpoints.check_endpoint(self.endpoint, fs.service_client.primary_endpoint)
        return fs

    def verdict(self, error: BaseException) -> str:
        answer = _answer(error)
        code = getattr(answer, "error_code", "")  # only the storage client's own errors have one
        if code in _REASONS:
            return _REASONS[code]
        if answer and answer.status_code in (401, 403):
            return _refused(str(answer))
        if isinstance(error, FileExistsError):
            return object_store.EXISTS
        if isinstance(error, FileNotFoundError):
            return object_store.MISSING
        return ""

    def no_answer(self, error: BaseException) -> bool:
        return isinstance(error, ServiceRequestError)

    def has_bucket(self) -> bool:
        async def look() -> None:
            async with self.fs.service_client.get_container_client(self.bucket) as container:
                async for _ in container.list_blob_names(results_per_page=1):
                    return

        try:
            sync(self.fs.loop, look)
        except ResourceNotFoundError:
            return False
        return True


def _refused(text: str) -> str:
    """The reason for a 401 or 403. Azure has one code for a wrong key, an expired signature and a wrong clock."""
    if "Request date header" in text:
        return "this machine's clock is wrong; set it"
    if "not valid in the specified time frame" in text:
        return "the access signature has expired (or this machine's clock is wrong); renew it"
    if "MAC signature" in text:
        return "the account key is wrong; check AZURE_STORAGE_CONNECTION_STRING or AZURE_STORAGE_ACCOUNT_KEY"
    return object_store.DENIED


def _answer(error: BaseException | None) -> Any:
    """The store's own answer behind an exception, or None. adlfs raises its own from inside the handler."""
    while error is not None:
        if isinstance(error, HttpResponseError):
            return error
        error = error.__cause__ or error.__context__
    return None
