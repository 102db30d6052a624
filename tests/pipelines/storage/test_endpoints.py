"""Endpoints at which no store can be are refused."""

from pathlib import Path

import pytest

from pipelines.storage.folder import Folder, StorageError
from tests.conftest import PointAt


class TestEndpoints:
    @pytest.mark.parametrize(
        "host",
        [
            "169.254.169.254",
            "169.254.0.7",
            "2852039166",
            "0xA9FEA9FE",
            "0251.0376.0251.0376",
            "169.16689662",
            "[::ffff:169.254.169.254]",
            "[::ffff:a9fe:a9fe]",
            "[64:ff9b::a9fe:a9fe]",
            "[2002:a9fe:a9fe::1]",
            "[fd00:ec2::254]",
            "[fe80::1]",
            "metadata.google.internal",
            "METADATA.google.internal.",
            "100.100.100.200",
            "192.0.0.192",
            "168.63.129.16",
        ],
    )
    @pytest.mark.parametrize("scheme", ["s3", "gs", "az"])
    def test_the_address_of_a_metadata_service_is_refused(self, scheme: str, host: str, point_at: PointAt) -> None:
        point_at(scheme, f"http://{host}:80")
        variable = {
            "s3": "AWS_ENDPOINT_URL",
            "gs": "STORAGE_EMULATOR_HOST",
            "az": "AZURE_STORAGE_CONNECTION_STRING",
        }[scheme]
        with pytest.raises(StorageError, match=r"no store is there$") as caught:
            Folder(f"{scheme}://bucket/x").read("a")
        assert str(caught.value).startswith(f"{variable} is http://")

    def test_a_profile_in_the_home_folder_cannot_name_it_either(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, point_at: PointAt
    ) -> None:
        point_at("s3", "http://unused")
        monkeypatch.delenv("AWS_ENDPOINT_URL")
        (tmp_path / "config").write_text("[default]\nendpoint_url = http://169.254.169.254/\n")
        monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
        with pytest.raises(StorageError, match=r"no store is there$"):
            Folder("s3://bucket/x")

    def test_a_bucket_that_is_called_so_is_asked_of_the_endpoint(self, s3: str) -> None:
        with pytest.raises(StorageError, match=r"the bucket does not exist|not a bucket's name|not found"):
            Folder("s3://169.254.169.254/latest").read("meta-data")
