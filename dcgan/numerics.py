"""What numbers are computed with: device, dtype, and the fingerprint that says when two machines agree bit for bit."""

from dataclasses import dataclass

import cv2
import numpy as np
import torch

# Of our own arithmetic: raised by each change to the networks or to sampling that changes an image's bits.
REVISION = "1"


@dataclass(frozen=True, slots=True)
class Arithmetic:
    """A device and a dtype. Weights may be float32 and still be multiplied in bfloat16 (autocast)."""

    device: str
    dtype: torch.dtype

    @property
    def dtype_name(self) -> str:
        return str(self.dtype).removeprefix("torch.")

    def autocast(self) -> torch.autocast:
        """Training's mixed precision: off for float32."""
        return torch.autocast(self.device, self.dtype, enabled=self.dtype != torch.float32)


def choose(precision: str, device: str) -> Arithmetic:
    """Resolve `auto`: a GPU where there is one, bfloat16 where the hardware multiplies it natively.

    Raises: ValueError if a GPU is asked for and there is none.
    """
    if device == "cuda" and not torch.cuda.is_available():
        raise ValueError("device is 'cuda', but torch sees no GPU here; use --device cpu")
    resolved = "cuda" if device != "cpu" and torch.cuda.is_available() else "cpu"
    native = torch.cuda.is_bf16_supported() if resolved == "cuda" else _cpu_has_bf16()
    use_bf16 = precision == "bf16" or (precision == "auto" and native)
    return Arithmetic(resolved, torch.bfloat16 if use_bf16 else torch.float32)


def fingerprint(arithmetic: Arithmetic) -> dict[str, str]:
    """All that the bits of an image depend on beside weights, seed and batch. Equal fingerprints: equal bits."""
    return {
        "device": _gpu() if arithmetic.device == "cuda" else _cpu(),
        "dtype": arithmetic.dtype_name,
        "ganmill": REVISION,
        "torch": torch.__version__,
        "numpy": np.__version__,
        "opencv": cv2.__version__,
    }


def grey_tolerance(stored: dict[str, str]) -> int:
    """How far a pixel may be from the stored one on a machine with another fingerprint, in grey levels of 255."""
    return 24 if stored["dtype"] == "bfloat16" else 1


def logit_tolerance(stored: dict[str, str]) -> float:
    """How far a score may be from the stored one, of the same pixels, on a machine with another fingerprint."""
    return 0.5 if stored["dtype"] == "bfloat16" else 1e-3


def _cpu_has_bf16() -> bool:
    """Elsewhere bfloat16 is emulated, and several times slower than float32."""
    return torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported()


def _cpu() -> str:
    """The instruction sets that decide which kernels run, and so the order in which they add."""
    names = ["cpu", torch.backends.cpu.get_cpu_capability()]
    names += ["amx"] if torch.cpu._is_amx_tile_supported() else []
    names += ["bf16"] if torch.cpu._is_avx512_bf16_supported() else []
    return " ".join(names)


def _gpu() -> str:
    cudnn = torch.backends.cudnn.version()  # type: ignore[no-untyped-call]
    return f"{torch.cuda.get_device_name()}, CUDA {torch.version.cuda}, cuDNN {cudnn}"
