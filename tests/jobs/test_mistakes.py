"""A user's mistake: one line that says what, which value, where and what to do, and status 2. No Ray is started."""

import os
import urllib.request
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jobs import browse, curate, evaluate, explore, generate, ingest, score, show, train, verify
from jobs.command import environment
from jobs.command.errors import UsageError
from jobs.command.settings import JobSettings, load
from jobs.ingestion.main import _identity
from pipelines import images
from pipelines.dataset import writer
from pipelines.dataset.identity import from_json
from pipelines.errors import DatasetError
from pipelines.ingest import catalogue
from pipelines.sources import registry
from pipelines.sources.base import Choice
from pipelines.storage.folder import Folder
from tests.conftest import Job, refused

COMMANDS: dict[str, type[JobSettings]] = {
    "ingest": ingest.IngestSettings,
    "train": train.TrainSettings,
    "generate": generate.GenerateSettings,
    "verify": verify.VerifySettings,
    "evaluate": evaluate.EvaluateSettings,
    "score": score.ScoreSettings,
    "curate": curate.CurateSettings,
    "explore": explore.ExploreSettings,
    "show": show.ShowSettings,
    "browse": browse.BrowseSettings,
}


@pytest.mark.parametrize(
    ("command", "answer"),
    [
        ("generate --cuont 5", "generate: error: unknown flag --cuont; did you mean --count?"),
        ("generate --count 0", "generate: error: --count 0: must be greater than or equal to 1"),
        ("train --config {tmp}/c.toml", "train: error: {tmp}/c.toml: unknown setting 'imagse'; did you mean images?"),
        ("verify --dataset {tmp}", "verify: error: {tmp}: no dataset here (dataset.json is missing); check the URL"),
        (
            "generate --model {tmp} --count 5",
            "generate: error: {tmp}: no model (model.json) and no run (best.json) is here; "
            "check the URL, or train first",
        ),
        ("browse --dataset {tmp}", "browse: error: {tmp}: no dataset here (dataset.json is missing); check the URL"),
        (
            "ingest --source digits --output {tmp}/x --image-size 128 --channels 3 --shard-size 1e5",
            "ingest: error: shard size 100,000 of 128x128x3 holds 4.6 GiB of pixels, more than 2; use at most 43,690",
        ),
    ],
)
def test_one_line_and_status_2(command: str, answer: str, tmp_path: Path, job: Job) -> None:
    (tmp_path / "c.toml").write_text("imagse = 5\n")
    assert refused(job(*command.format(tmp=tmp_path).split())) == answer.format(tmp=tmp_path)


@pytest.fixture
def strict(s3: str, s3_server: str) -> Iterator[str]:
    """A bucket on a server that checks keys and policies, as moto does when it is told to."""
    _check_keys_after(s3_server, "0")
    yield s3
    _check_keys_after(s3_server, "inf")


def _check_keys_after(server: str, requests: str) -> None:
    order = urllib.request.Request(
        f"{server}/moto-api/reset-auth", requests.encode(), {"Content-Type": "text/plain"}, method="POST"
    )
    with urllib.request.urlopen(order) as answer:
        assert answer.status == 200


def test_bucket_that_does_not_exist(s3: str, job: Job) -> None:
    line = refused(job("ingest", "--source", "digits", "--output", f"{s3}-not/real"))
    assert line == (
        f"ingest: error: {s3}-not/real/dataset.json: the bucket does not exist; "
        "create it, or check the name and AWS_ENDPOINT_URL"
    )


def test_refused_credentials(strict: str, job: Job) -> None:
    line = refused(job("verify", "--dataset", f"{strict}/real"))
    assert line == (
        f"verify: error: {strict}/real/dataset.json: the store does not know this access key; check AWS_ACCESS_KEY_ID"
    )
    line = refused(job("ingest", "--source", "digits", "--output", f"{strict}/real"))
    assert line == (
        f"ingest: error: {strict}/real/dataset.json: the store does not know this access key; check AWS_ACCESS_KEY_ID"
    )


def test_no_credentials(s3: str, job: Job, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    nowhere = {"HOME": str(tmp_path), "AWS_EC2_METADATA_DISABLED": "true"}  # no ~/.aws, no instance role
    line = refused(job("verify", "--dataset", f"{s3}/real", env=nowhere))
    assert line == (
        f"verify: error: {s3}/real/dataset.json: no credentials; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
    )


def test_endpoint_that_is_none(s3: str, job: Job) -> None:
    line = refused(job("verify", "--dataset", f"{s3}/real", env={"AWS_ENDPOINT_URL": "localhost:9000"}))
    assert line == "verify: error: AWS_ENDPOINT_URL is localhost:9000: not a URL; write http://localhost:9000"


@pytest.mark.long
def test_endpoint_that_does_not_answer(s3: str, job: Job) -> None:
    line = refused(job("verify", "--dataset", f"{s3}/real", env={"AWS_ENDPOINT_URL": "http://127.0.0.1:9"}))
    url = f"{s3}/real/dataset.json"
    assert line == (
        f'verify: error: {url}: Could not connect to the endpoint URL: "http://127.0.0.1:9/{url.removeprefix("s3://")}"'
        "; check AWS_ENDPOINT_URL and the network"
    )


@pytest.mark.parametrize(
    ("command", "answer"),
    [
        ("generate", "--count is required; see --help"),
        ("generate --count", "argument --count: expected one argument"),
        ("generate --count 1.5", "--count 1.5: must be a whole number, as 1000 or 1e3"),
        ("generate --count -3", "--count -3: must be greater than or equal to 1"),
        ("generate --count many", "--count many: must be a whole number, as 1000 or 1e3"),
        ("generate --count 1e-2", "--count 1e-2: must be a whole number, as 1000 or 1e3"),
        ("generate --count 1e13", "--count 10000000000000: must be less than or equal to 1000000000000"),
        ("generate --count 5 --shard-siez 5", "unknown flag --shard-siez; did you mean --shard-size?"),
        ("generate --count 5 --shard", "unknown flag --shard; did you mean --shard-size?"),
        ("generate --count 5 --zzz", "unknown flag --zzz; see --help"),
        ("generate --count 5 --precision fp8", "--precision fp8: must be 'auto', 'fp32' or 'bf16'"),
        ("generate --count 5 --gpus-per-worker 0", "--gpus-per-worker 0: must be greater than or equal to 0.001"),
        ("generate --count 5 --model ftp://a/b", "--model: ftp://a/b: scheme 'ftp' is not one of file, s3, gs, az"),
        ("generate --count 5 --root s3://", "--root: s3://: no bucket; write s3://bucket/prefix"),
        (
            "generate --count 5 --output s3://key:secret@bucket/x",
            "--output: s3://bucket...: no credentials or options in a URL; set them in the environment",
        ),
        (
            "ingest --source s3://key:secret@bucket/x",
            "--source: s3://bucket...: no credentials or options in a URL; set them in the environment",
        ),
        (
            "train --data s3://bucket/x?X-Amz-Signature=hush",
            "--data: s3://bucket...: no credentials or options in a URL; set them in the environment",
        ),
        (
            "verify --dataset az://user:hush@bucket/x",
            "--dataset: az://bucket...: no credentials or options in a URL; set them in the environment",
        ),
        ("ingest --source x --background whit", "--background whit: no colour 'whit'; write a CSS name or #rrggbb"),
        ("ingest --source x --resize tets", "--resize tets: must be 'crop', 'pad' or 'stretch'"),
        (
            "train --recipe digits",
            "--recipe digits: there is dcgan64, digits28, emoji64, gan28, keras28; or give a TOML file",
        ),
        ("curate", "--rule is required; see --help"),
        ("explore --what picture", "--what picture: must be 'all', 'features', 'backprop' or 'walks'"),
        ("curate --rule best", "--rule best: must be 'threshold', 'top' or 'drs'"),
        ("curate --rule top --share 0", "--share 0: must be greater than 0"),
        ("curate --rule threshold --min-logit nan", "--min-logit nan: must be a finite number"),
        ("train --recipe {tmp}/no.toml", "{tmp}/no.toml: cannot be read: No such file or directory"),
        ("train --batch-size 1", "--batch-size 1: must be greater than or equal to 2"),
        ("train --config {tmp}/text.toml", "{tmp}/text.toml: width wide: must be a whole number, as 1000 or 1e3"),
        ("train --config {tmp}/true.toml", "{tmp}/true.toml: images True: must be a whole number, as 1000 or 1e3"),
        ("train --config {tmp}/table.toml", "{tmp}/table.toml: unknown setting 'x'; see --help"),
        ("train --config {tmp}/broken.toml", "{tmp}/broken.toml: cannot be read: Invalid value (at line 1, column 10)"),
        ("train --config {tmp}/list.toml", "{tmp}/list.toml: images [1]: must be a whole number, as 1000 or 1e3"),
        ("train --config {tmp}/utf16.toml", "{tmp}/utf16.toml: cannot be read: not UTF-8; save it as UTF-8"),
        (
            "train --config {tmp}/twice.toml",
            "{tmp}/twice.toml: cannot be read: Cannot overwrite a value (at end of document)",
        ),
        (
            "train --config {tmp}/nul.toml",
            "{tmp}/nul.toml: cannot be read: Expected '=' after a key in a key/value pair (at line 1, column 6)",
        ),
        (
            "train --config {tmp}/escaped.toml",
            "{tmp}/escaped.toml: data 'a\\x00b': control characters and bytes that are not UTF-8 are not allowed",
        ),
        ("train --config {tmp}", "{tmp}: cannot be read: Is a directory"),
        ("train --config /dev/zero", "/dev/zero: more than 1 MiB; is this a file of settings?"),
        ("train --ema nan", "--ema nan: must be a finite number"),
        ("train --generator-lr 1e400", "--generator-lr 1e400: must be a finite number"),
        (
            "ingest --source x --max-rejects {digits}",
            "--max-rejects {short}: must be a share, as 0.05, or a number of images, as 100",
        ),
        (
            "generate --count 5 --gpus-per-worker 1.5",
            "--gpus-per-worker 1.5: above 1 it must be a whole number of GPUs",
        ),
        ("generate --count 5 --gpus-per-worker 1e-9", "--gpus-per-worker 1e-9: must be greater than or equal to 0.001"),
    ],
)
def test_settings_that_are_refused(command: str, answer: str, tmp_path: Path) -> None:
    """load() raises what the commands print behind `NAME: error: `."""
    files = {"text": 'width = "wide"', "true": "images = true", "table": "[x]\nimages = 1", "broken": "images = \n"}
    files |= {"list": "images = [1]", "twice": "images = 1\nimages = 2", "nul": "image\0s = 1"}
    for name, text in {**files, "escaped": r'data = "a\u0000b"'}.items():
        (tmp_path / f"{name}.toml").write_text(text)
    (tmp_path / "utf16.toml").write_text("images = 5", encoding="utf-16")
    texts = {"tmp": tmp_path, "digits": "9" * 5000, "short": "9" * 97 + "..."}
    name, *flags = command.format(**texts).split()
    with pytest.raises(UsageError) as error:
        load(COMMANDS[name], flags)
    assert str(error.value) == answer.format(**texts)


def test_a_config_with_a_byte_order_mark_is_read(tmp_path: Path) -> None:
    """As Windows' editor saves one."""
    (tmp_path / "c.toml").write_text("images = 5", encoding="utf-8-sig")
    assert load(train.TrainSettings, ["--config", str(tmp_path / "c.toml")]).images == 5


NEEDED = {"ingest": ["--source=digits"], "generate": ["--count=5"], "curate": ["--rule=top"]}
ODD = ["", "~nobody", "\u00b2", "nan", "9" * 5000, "1e400", "a\0b", "a\nb", "\udcff"]


@pytest.mark.parametrize("name", COMMANDS)
def test_an_odd_value_of_any_flag_is_taken_or_refused_in_a_line(name: str) -> None:
    """The longest, the strangest, and what no line can hold: an empty text is as good as none."""
    for field, odd in product(COMMANDS[name].model_fields, ODD):
        flag = f"--{field.replace('_', '-')}={odd}"
        try:
            told = str(load(COMMANDS[name], [*NEEDED.get(name, []), flag]).describe())
        except UsageError as error:
            told = str(error)
        assert told.isprintable(), flag
        told.encode()


@pytest.mark.parametrize(
    ("variable", "answer"),
    [
        ("GANMILL_SHRD_SIZE", "did you mean GANMILL_SHARD_SIZE?"),
        ("GANMILL_CUONT", "did you mean GANMILL_COUNT?"),
        ("GANMILL_ROOT_PATH", "did you mean GANMILL_ROOT?"),
    ],
)
def test_a_misspelt_variable_is_refused(variable: str, answer: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(variable, "5")
    with pytest.raises(UsageError) as error:
        load(train.TrainSettings, [])
    assert str(error.value) == f"{variable} in the environment: unknown setting; {answer}"


def test_variables_of_other_commands_and_of_kubernetes_are_let_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    """In every pod Kubernetes names each Service of the namespace, and infra/k8s has a cluster `ganmill`."""
    for variable in (
        *("GANMILL_COUNT", "GANMILL_HEAD_SVC_SERVICE_HOST", "GANMILL_HEAD_SVC_SERVICE_PORT"),
        *("GANMILL_HEAD_SVC_SERVICE_PORT_GCS_SERVER", "GANMILL_HEAD_SVC_PORT", "GANMILL_HEAD_SVC_PORT_6379_TCP"),
        *("GANMILL_HEAD_SVC_PORT_6379_TCP_ADDR", "GANMILL_SERVICE_HOST", "GANMILL_PORT"),
    ):
        monkeypatch.setenv(variable, "tcp://10.0.0.1:6379")
    load(train.TrainSettings, [])


def test_the_variables_are_the_settings_of_all_commands() -> None:
    assert {name for settings in COMMANDS.values() for name in settings.model_fields} == environment.NAMES


@pytest.mark.parametrize("settings", [ingest.IngestSettings, train.TrainSettings])
def test_a_choice_of_numbers_is_a_flag_too(settings: type[JobSettings]) -> None:
    given = ["--channels", "3", *(["--source", "digits"] if settings is ingest.IngestSettings else [])]
    assert load(settings, given).channels == 3  # type: ignore[attr-defined]  # both have it


@pytest.mark.parametrize("value", ["1e6", "1E6", "1.0e6", "1000000", "1_000_000", "+1e+6"])
def test_numbers_may_be_written_so(value: str) -> None:
    assert load(generate.GenerateSettings, ["--count", value]).count == 1_000_000


def test_what_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Flags, environment, --config, recipe, defaults."""
    config = tmp_path / "c.toml"

    def images(*flags: str) -> int:
        return load(train.TrainSettings, ["--recipe", "keras28", *flags]).images

    assert load(train.TrainSettings, []).images == 300_000
    assert images() == 128_000
    config.write_text("images = 1e5\n")
    assert images("--config", str(config)) == 100_000
    monkeypatch.setenv("GANMILL_IMAGES", "5e4")
    assert images("--config", str(config)) == 50_000
    assert images("--config", str(config), "--images", "700") == 700
    monkeypatch.setenv("GANMILL_IMAGES", "")  # as good as unset
    monkeypatch.setenv("GANMILL_CONFIG", str(config))
    assert images() == 100_000
    monkeypatch.setenv("GANMILL_IMAGES", "few")
    with pytest.raises(UsageError) as error:
        images()
    assert str(error.value) == "GANMILL_IMAGES few: must be a whole number, as 1000 or 1e3"


@pytest.mark.parametrize(
    ("root", "under"), [("/big/root", "/big/root"), ("s3://bucket/a/", "s3://bucket/a"), ("file:///r", "/r")]
)
def test_root_decides_the_defaults(root: str, under: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def found(name: str, *flags: str) -> dict[str, Any]:
        return load(COMMANDS[name], list(flags)).describe()

    monkeypatch.setenv("GANMILL_ROOT", root)
    assert found("ingest", "--source", "digits")["output"] == f"{under}/real"
    made = found("train")
    assert (made["data"], made["run"]) == (f"{under}/real", f"{under}/run")
    made = found("generate", "--count", "5", "--model", "elsewhere")
    assert (made["model"], made["output"]) == (f"{os.getcwd()}/elsewhere", f"{under}/synthetic")
    made = found("evaluate")
    assert (made["real"], made["fake"]) == (f"{under}/real", f"{under}/synthetic")
    assert found("verify")["dataset"] == f"{under}/synthetic"
    assert found("curate", "--rule", "top")["dataset"] == f"{under}/synthetic"
    assert found("verify", "--root", "/other")["dataset"] == "/other/synthetic"


def test_a_submitted_job_refuses_relative_paths(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray's job supervisor sets the variable for its entrypoints."""
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")
    why = (
        "a relative path would vanish with the submitted job's working directory; set GANMILL_ROOT or --root to a "
        "URL, or to an absolute path that every node can reach"
    )
    with pytest.raises(UsageError) as error:
        load(generate.GenerateSettings, ["--count", "5"])
    assert str(error.value) == f"--root ganmill-data: {why}"
    monkeypatch.setenv("GANMILL_ROOT", "/shared")
    with pytest.raises(UsageError) as error:
        load(generate.GenerateSettings, ["--count", "5", "--output", "here"])
    assert str(error.value) == f"--output here: {why}"
    assert load(generate.GenerateSettings, ["--count", "5"]).output == "/shared/synthetic"


@pytest.mark.parametrize("files", [1, 2])
def test_what_an_earlier_version_began_from_several_parquet_files_is_not_gone_on_with(
    files: int, tmp_path: Path
) -> None:
    """Its pictures may be wrong. From one file they were right: no other identity."""
    for number in range(files):
        image = [images.encode(np.full((28, 28, 1), 9 * number + n, np.uint8)) for n in range(3)]
        pq.write_table(pa.table({"image": image, "label": ["a", "b", "a"]}), tmp_path / f"{number}.parquet")
    settings = ingest.IngestSettings(source=str(tmp_path), output=str(tmp_path / "out"))
    source = registry.open_source(str(tmp_path), "parquet", Choice())
    kept, _ = catalogue.plan(source.items(), str(tmp_path), None, True, 0, 0.0, tmp_path)
    identity = _identity(settings, source, {}, kept, kept)
    earlier = identity.to_json()
    assert earlier.pop("reader", None) == (2 if files > 1 else None)
    if files > 1:
        writer.claim(Folder(settings.output), from_json(earlier), settings.stored())
        with pytest.raises(DatasetError, match=r"claimed with reader = nothing, this run has 2; .*another --output"):
            ingest.main(settings)
