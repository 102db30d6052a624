"""The choice of device and dtype, and the fingerprint that decides whether two machines compute the same bits."""

import cv2
import numpy as np
import torch

from dcgan.arithmetic import Arithmetic

# The revision of this project's arithmetic. Every change to the networks or to sampling that changes an image's bits
# must raise it.
REVISION = "1"


def choose(precision: str, device: str) -> Arithmetic:
    """Resolve `auto`: a GPU if there is one, bfloat16 if the hardware multiplies it natively.

    Args:   precision: "auto", "fp32" or "bf16". device: "auto", "cpu" or "cuda".
    Raises: ValueError if `device` is "cuda" and there is no GPU.
    """
    if device == "cuda" and not torch.cuda.is_available():
        raise ValueError("device is 'cuda', but torch sees no GPU here; use --device cpu")
    resolved = "cuda" if device != "cpu" and torch.cuda.is_available() else "cpu"
    native = torch.cuda.is_bf16_supported() if resolved == "cuda" else _cpu_has_bf16()
    use_bf16 = precision == "bf16" or (precision == "auto" and native)
    return Arithmetic(resolved, "bfloat16" if use_bf16 else "float32")


def fingerprint(arithmetic: Arithmetic) -> dict[str, str]:
    """Everything except weights, seed and batch that decides an image's bits. Equal fingerprints give equal bits."""
    return {
        "device": _gpu() if arithmetic.device == "cuda" else _cpu(),
        "dtype": arithmetic.dtype_name,
        "ganmill": REVISION,
        "torch": str(torch.__version__),  # it is a class of torch's, and whoever unpickles it imports torch
        "numpy": np.__version__,
        "opencv": cv2.__version__,
    }


def _cpu_has_bf16() -> bool:
    """Whether the CPU multiplies bfloat16 natively. Emulated bfloat16 is several times slower than float32."""
    return torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported()


def _cpu() -> str:
    """The instruction sets. They decide which kernels run, and so the order of additions."""
    names = ["cpu", torch.backends.cpu.get_cpu_capability()]
    names += ["amx"] if torch.cpu._is_amx_tile_supported() else []
    names += ["bf16"] if torch.cpu._is_avx512_bf16_supported() else []
    return " ".join(names)


def _gpu() -> str:
    cudnn = torch.backends.cudnn.version()  # type: ignore[no-untyped-call]
    return f"{torch.cuda.get_device_name()}, CUDA {torch.version.cuda}, cuDNN {cudnn}"
