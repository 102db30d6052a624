"""Object stores, on servers that speak their protocols: S3, Google Cloud Storage, Azure."""

import json
import time
from concurrent.futures import ThreadPoolExecutor

import boto3
import pytest

from pipelines.storage.folder import Folder, StorageError, TooLargeError
from tests import emulators
from tests.conftest import PointAt
from tests.faults import Answering, FaultyProxy

DENIED = "permission denied; check the credentials in the environment, and their permissions"


class TestOnObjectStores:
    @pytest.mark.parametrize("scheme", ["s3", "gs", "az"])
    @pytest.mark.parametrize("call", ["list", "tree", "read", "read_range", "write", "create"])
    def test_a_bucket_that_does_not_exist_is_an_error_at_once(
        self, scheme: str, call: str, request: pytest.FixtureRequest
    ) -> None:
        request.getfixturevalue(scheme)
        arguments = {"read": ["a"], "read_range": ["a", 0, 1], "write": ["a", b""], "create": ["a", b""]}.get(call, [])
        url = f"{scheme}://no-such-bucket-here/x"
        with pytest.raises(StorageError) as caught:
            getattr(Folder(url), call)(*arguments)
        hint = " and AWS_ENDPOINT_URL" if scheme == "s3" else ""
        assert str(caught.value) == (
            f"{url}{'/a' if arguments else ''}: the bucket does not exist; create it, or check the name{hint}"
        )

    @pytest.mark.parametrize("scheme", ["s3", "gs", "az"])
    @pytest.mark.slow
    def test_more_files_than_a_page_of_a_listing_holds(self, scheme: str, request: pytest.FixtureRequest) -> None:
        """S3 and Google give 1,000 a page, Azure 5,000; the emulator of the last two pages only when asked."""
        folder = Folder(f"{request.getfixturevalue(scheme)}/many")
        names = {f"{n:04d}" for n in range(1001)}
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(lambda name: folder.write(f"d/{name}", b"x"), names))
        assert folder.list("d") == dict.fromkeys(names, 1)
        assert folder.tree() == {f"d/{name}": 1 for name in names}

    @pytest.mark.parametrize("scheme", ["s3", "gs", "az"])
    @pytest.mark.slow
    def test_an_upload_in_parts_is_whole(self, scheme: str, request: pytest.FixtureRequest) -> None:
        """s3fs begins parts at 100 MiB, gcsfs at 50, Azure's client at 64."""
        folder = Folder(f"{request.getfixturevalue(scheme)}/large")
        data = bytes(range(251)) * ((101 << 20) // 251)
        folder.write("a", data)
        assert folder.list() == {"a": len(data)}
        assert folder.read("a", len(data)) == data
        assert folder.read_range("a", 77 << 20, 300) == data[77 << 20 : (77 << 20) + 300]
        with pytest.raises(TooLargeError):
            folder.read("a", len(data) - 1)

    @pytest.mark.parametrize(
        ("scheme", "status", "code", "text", "words"),
        [
            ("s3", 403, "RequestTimeTooSkewed", "", "this machine's clock is wrong; set it"),
            ("s3", 400, "ExpiredToken", "", "the session token has expired; renew it"),
            ("s3", 403, "AccessDenied", "", DENIED),
            ("s3", 400, "AuthorizationHeaderMalformed", "", "the bucket is in another region; set AWS_REGION"),
            ("gs", 401, "authError", "Invalid Credentials", DENIED),
            ("gs", 403, "forbidden", "does not have storage.objects.create access", DENIED),
            ("gs", 400, "invalid", "Invalid bucket name: 'x'", "refused: "),
            (
                "az",
                403,
                "AuthenticationFailed",
                "Request date header too old: 'x'",
                "this machine's clock is wrong; set it",
            ),
            (
                "az",
                403,
                "AuthenticationFailed",
                "Signature not valid in the specified time frame",
                "the access signature has expired (or this machine's clock is wrong); renew it",
            ),
            (
                "az",
                403,
                "AuthenticationFailed",
                "The MAC signature found in the HTTP request 'x' is not the same as any computed signature",
                "the account key is wrong; check AZURE_STORAGE_CONNECTION_STRING or AZURE_STORAGE_ACCOUNT_KEY",
            ),
            ("az", 403, "AuthorizationPermissionMismatch", "not authorized", DENIED),
        ],
    )
    def test_the_usual_failures_are_said_in_words(
        self, scheme: str, status: int, code: str, text: str, words: str, point_at: PointAt
    ) -> None:
        """By a server that gives the answer that the store's documentation has for it."""
        error: dict[str, object] = {"error": {"code": status, "message": text, "errors": [{"reason": code}]}}
        xml = f"<Error><Code>{code}</Code><Message>{text}</Message></Error>"
        body = json.dumps(error) if scheme == "gs" else f'<?xml version="1.0" encoding="utf-8"?>{xml}'
        headers = {"Content-Type": "application/xml", "x-ms-error-code": code}
        with Answering(status, body.encode(), headers) as server:
            point_at(scheme, server.url)
            with pytest.raises(StorageError) as caught:
                Folder(f"{scheme}://bucket/x").write("a", b"1")
        assert str(caught.value).startswith(f"{scheme}://bucket/x/a: {words}")

    def test_a_wrong_key_is_said_by_azure(
        self, az: str, az_server: str, point_at: PointAt, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        point_at("az", az_server)
        for name, value in emulators.azure_environment(az_server, "d3Jvbmc=").items():
            monkeypatch.setenv(name, value)
        with pytest.raises(StorageError, match=r"permission denied|the account key is wrong"):
            Folder(f"{az}/x").write("a", b"1")

    @pytest.mark.parametrize(
        "scheme", [pytest.param("s3", marks=pytest.mark.long), "gs", pytest.param("az", marks=pytest.mark.long)]
    )
    def test_a_body_that_comes_in_drops_is_ended(self, scheme: str, point_at: PointAt) -> None:
        with Answering(206, bytes(1000), {"Content-Range": "bytes 0-999/1000"}, drip_s=0.2) as server:
            point_at(scheme, server.url)
            folder = Folder(f"{scheme}://bucket/x")
            folder.store.call_s = 0.5
            started = time.monotonic()
            with pytest.raises(OSError, match=f"^{folder}/a: gave up after 6 attempts: "):
                folder.read("a", 100)
        assert time.monotonic() - started < 60

    @pytest.mark.parametrize(
        "kind",
        [
            "slow_down",
            "late_reset",
            "cut",
            *(pytest.param(k, marks=pytest.mark.long) for k in ("reset", "late_error")),
        ],
    )
    @pytest.mark.parametrize("scheme", ["gs", "az"])
    def test_every_call_outlasts_a_store_that_fails_twice(
        self, scheme: str, kind: str, request: pytest.FixtureRequest, point_at: PointAt
    ) -> None:
        """As on S3, where test_retries.py has it. Unlike there a cut goes to uploads' answers too."""
        base, server = request.getfixturevalue(scheme), request.getfixturevalue(f"{scheme}_server")
        Folder(f"{base}/x").write("b", b"22" * 50)
        with FaultyProxy(server, stall_s=30.0) as proxy:
            point_at(scheme, proxy.url)
            folder = Folder(f"{base}/x")

            def twice() -> None:
                left = iter(range(2))
                proxy.kinds, proxy.where = {kind: 1.0}, lambda method, path: next(left, None) is not None

            twice()
            folder.write("a", b"11")
            twice()
            assert folder.read("a", 10) == b"11"
            twice()
            assert folder.read_range("b", 1, 50) == b"2" * 50
            twice()
            assert folder.tree() == {"a": 2, "b": 100}
            twice()
            assert folder.exists("a")
            twice()
            folder.delete("a")
            proxy.kinds = {}
            assert folder.list() == {"b": 100}
            assert proxy.counts[kind] >= (6 if kind == "cut" else 12)

    @pytest.mark.long
    @pytest.mark.parametrize("scheme", ["gs", "az"])
    def test_a_store_that_says_nothing_is_asked_again(
        self, scheme: str, request: pytest.FixtureRequest, point_at: PointAt
    ) -> None:
        base, server = request.getfixturevalue(scheme), request.getfixturevalue(f"{scheme}_server")
        Folder(f"{base}/x").write("a", b"1")
        once = iter([True])
        with FaultyProxy(server, {"stall": 1.0}, stall_s=100.0, where=lambda method, path: next(once, False)) as proxy:
            point_at(scheme, proxy.url)
            started = time.monotonic()
            assert Folder(f"{base}/x").read("a", 10) == b"1"
        assert 15 < time.monotonic() - started < 60


class TestOnS3:
    def test_what_was_begun_and_not_completed_is_aborted(self, s3: str) -> None:
        """A process that dies during a large upload leaves its parts. moto gives them all the date of 2010."""
        client, bucket = boto3.client("s3"), s3.removeprefix("s3://")

        def begun() -> set[str]:
            return {upload["Key"] for upload in client.list_multipart_uploads(Bucket=bucket).get("Uploads", [])}

        for key in ("data/shards/000001.tar", "data-2/shards/000001.tar"):
            upload = client.create_multipart_upload(Bucket=bucket, Key=key)["UploadId"]
            client.upload_part(Bucket=bucket, Key=key, UploadId=upload, PartNumber=1, Body=bytes(5 << 20))
        folder = Folder(f"{s3}/data")
        folder.abort_uploads(older_s=100 * 365 * 86_400)
        assert begun() == {"data/shards/000001.tar", "data-2/shards/000001.tar"}
        folder.abort_uploads()
        assert begun() == {"data-2/shards/000001.tar"}

    def test_a_whole_bucket_is_a_folder(self, s3: str) -> None:
        Folder(s3).write("a", b"x")
        Folder(f"{s3}/d").write("b", b"yy")
        assert Folder(f"{s3}/").list() == {"a": 1}
        assert Folder(s3).tree() == {"a": 1, "d/b": 2}

    def test_a_scheme_is_the_same_in_capitals(self, s3: str) -> None:
        Folder(f"{s3}/x").write("a", b"x")
        assert Folder(f"{s3}/x".replace("s3://", "S3://")).read("a") == b"x"
