"""The import law, and the calls that no part of the code may make, read from the source itself."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

from dcgan.families.registry import FAMILIES

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("pipelines", "dcgan", "jobs")
ROOMS = {
    "ingestion": "ingest",
    "training": "train",
    "generation": "generate",
    "verification": "verify",
    "evaluation": "evaluate",
    "scoring": "score",
    "selection": "curate",
    "exploration": "explore",
    "presentation": "show",
    "browsing": "browse",
}
STORES = {"fsspec", "s3fs", "gcsfs", "adlfs", "boto3", "botocore", "aiobotocore"}
NETWORK = {"urllib", "http", "requests", "httpx", "aiohttp", "socket", "ftplib"}
# Modules that execute what they read, or that could go round the import law.
FORBIDDEN_MODULES = {"pickle", "cPickle", "_pickle", "cloudpickle", "dill", "joblib", "shelve", "marshal"}
FORBIDDEN_NAMES = {"eval", "exec", "compile", "__import__"}
FORBIDDEN_ATTRIBUTES = {
    ("torch", "load"),
    ("torch", "save"),
    ("os", "system"),
    ("os", "popen"),
    ("importlib", "import_module"),
}


def sources(package: str) -> list[Path]:
    return sorted((ROOT / package).rglob("*.py"))


def every_source() -> list[Path]:
    return [file for package in PACKAGES for file in sources(package)]


def tree(file: Path) -> ast.Module:
    return ast.parse(file.read_text(), str(file))


def imported(module: ast.Module) -> set[str]:
    """Every module and every `module.name` that a file imports, at any depth, with its parents."""
    found: set[str] = set()
    for node in ast.walk(module):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            assert node.module is not None
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return {name.rsplit(".", n)[0] for name in found for n in range(name.count(".") + 1)}


def violations(module: ast.Module) -> Iterator[str]:
    """What a file does that nothing here may do."""
    yield from sorted(imported(module) & FORBIDDEN_MODULES)
    yield from sorted({".".join(pair) for pair in FORBIDDEN_ATTRIBUTES} & imported(module))
    for name in imported(module):
        if name.endswith(".gopen"):
            yield name
    for node in ast.walk(module):
        if isinstance(node, ast.Attribute):
            if isinstance(node.value, ast.Name) and (node.value.id, node.attr) in FORBIDDEN_ATTRIBUTES:
                yield f"{node.value.id}.{node.attr}"
            if node.attr == "gopen":
                yield "gopen"
        if isinstance(node, ast.Call):
            if isinstance(node.func, ast.Name) and node.func.id in FORBIDDEN_NAMES:
                yield node.func.id
            for keyword in node.keywords:
                off = isinstance(keyword.value, ast.Constant) and keyword.value.value is False
                if keyword.arg in ("shell", "allow_pickle") and not off:
                    yield f"{keyword.arg}="


def strings(module: ast.Module) -> Iterator[str]:
    """Every string of a file that is not a docstring."""
    owners = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    prose = {
        id(node.value) for owner in ast.walk(module) if isinstance(owner, owners) for node in owner.body[:1]
        if isinstance(node, ast.Expr)
    }  # fmt: skip
    for node in ast.walk(module):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in prose:
            yield node.value


@pytest.mark.parametrize(
    ("package", "never"),
    [
        ("pipelines", {"dcgan", "jobs", "ray", "torch", "torchvision"}),
        ("dcgan", {"pipelines", "jobs", "ray", "webdataset"} | STORES | NETWORK),
        ("jobs", {"tests", "benchmarks", "infra"} | {"fsspec", "s3fs", "gcsfs", "adlfs"}),
    ],
)
def test_a_package_imports_only_what_the_law_allows(package: str, never: set[str]) -> None:
    assert sources(package), f"no source in {package}"
    broken = {file.name: names for file in sources(package) if (names := imported(tree(file)) & never)}
    assert broken.pop("torchvision_sets.py", {"torchvision"}) == {"torchvision"}  # its datasets, and no tensors
    assert broken == {}


def test_nothing_imports_a_command() -> None:
    commands = {f"jobs.{file.stem}" for file in (ROOT / "jobs").glob("*.py") if file.stem != "__init__"}
    assert {"jobs.generate", "jobs.train"} <= commands
    importers = {file: names for file in every_source() if (names := imported(tree(file)) & commands)}
    assert importers == {}


def test_a_room_is_imported_by_its_command_alone() -> None:
    """What two commands need lies in `jobs/command`, in `jobs/cluster`, or in a package below."""
    rooms = {path.name for path in (ROOT / "jobs").iterdir() if (path / "__init__.py").exists()}
    assert rooms == {*ROOMS, "command", "cluster"}
    for room, command in ROOMS.items():
        for file in every_source():
            inside = file.parent.name == room or file.name == f"{command}.py"
            assert inside or f"jobs.{room}" not in imported(tree(file)), f"{file} imports jobs.{room}"


def test_what_all_commands_share_imports_no_room() -> None:
    for shared, never in (("command", {*ROOMS, "cluster"}), ("cluster", {*ROOMS})):
        for file in (ROOT / "jobs" / shared).glob("*.py"):
            assert imported(tree(file)).isdisjoint(f"jobs.{room}" for room in never), file


def test_a_familys_name_stands_in_families_and_recipes_only() -> None:
    """Whoever asks for a family by its name would need an `elif` for the next one."""
    names = {*FAMILIES}
    for file in every_source():
        if ROOT / "dcgan" / "families" not in file.parents:
            words = {text: {text, *re.findall(r"\w+", text)} & names for text in strings(tree(file))}
            assert {text for text, found in words.items() if text in found or found - {"dcgan"}} == set(), file


def test_ray_lives_in_jobs_and_is_used_there() -> None:
    users = {file.relative_to(ROOT).parts[0] for file in every_source() if "ray" in imported(tree(file))}
    assert users == {"jobs"}


def test_importing_pipelines_and_dcgan_loads_neither_ray_nor_jobs() -> None:
    files = [file.relative_to(ROOT).with_suffix("") for package in ("pipelines", "dcgan") for file in sources(package)]
    names = [".".join(file.parts).removesuffix(".__init__") for file in files]
    code = f"import sys, {', '.join(names)}\nprint(sorted({{'ray', 'jobs', 'torchvision'}} & {{*sys.modules}}))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_dcgan_handles_no_urls_and_opens_no_files() -> None:
    for file in sources("dcgan"):
        module = tree(file)
        assert [text for text in strings(module) if "://" in text] == [], file.name
        calls = [node.func for node in ast.walk(module) if isinstance(node, ast.Call)]
        assert [call for call in calls if isinstance(call, ast.Name) and call.id == "open"] == [], file.name


@pytest.mark.parametrize("package", PACKAGES)
def test_nothing_executes_what_it_reads(package: str) -> None:
    broken = {file.name: names for file in sources(package) if (names := list(violations(tree(file))))}
    # One file of one package, after its sha256 was compared (tests/jobs/command/test_feature_weights.py).
    assert broken.pop("feature_weights.py", ["torch.load"]) == ["torch.load"]
    assert broken == {}


def test_the_one_pickle_is_read_by_the_unpickler_for_tensors() -> None:
    calls = [node for node in ast.walk(tree(ROOT / "jobs/command/feature_weights.py")) if isinstance(node, ast.Call)]
    [load] = [call for call in calls if ast.unparse(call.func) == "torch.load"]
    assert [ast.unparse(keyword.value) for keyword in load.keywords if keyword.arg == "weights_only"] == ["True"]


@pytest.mark.parametrize(
    "snippet",
    [
        "import pickle",
        "import importlib\nimportlib.import_module('ray')",
        "from importlib import import_module",
        "from pickle import loads",
        "import torch\ntorch.load('x')",
        "from torch import load",
        "import os\nos.system('ls')",
        "from webdataset.gopen import gopen",
        "import webdataset\nwebdataset.gopen('pipe:ls')",
        "def f():\n    return eval('1')",
        "exec('x = 1')",
        "__import__('ray')",
        "import subprocess\nsubprocess.run('ls', shell=True)",
        "import subprocess\nsubprocess.run('ls', shell=flag)",
        "import numpy\nnumpy.load('x', allow_pickle=True)",
    ],
)
def test_the_scan_sees_each_forbidden_thing(snippet: str) -> None:
    assert list(violations(ast.parse(snippet)))


@pytest.mark.parametrize("snippet", ["model.eval()", "import json\njson.load(f)", "run('ls', shell=False)"])
def test_the_scan_lets_pass_what_only_looks_like_one(snippet: str) -> None:
    assert list(violations(ast.parse(snippet))) == []


def test_no_file_in_jobs_hides_another_module() -> None:
    """A script's own folder comes first on its path: `jobs/queue.py` would hide the standard library's from Ray."""
    taken = {*sys.stdlib_module_names, *packages_distributions()} | {"tests", "infra", "benchmarks"}
    assert "queue" in taken
    assert "ray" in taken
    hidden = [path.stem for path in (ROOT / "jobs").iterdir() if path.stem in taken]
    assert hidden == []
