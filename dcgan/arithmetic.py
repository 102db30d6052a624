"""The device and dtype of a computation, by name: whoever only passes them on does not wait for torch."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, slots=True)
class Arithmetic:
    """A device and a dtype. In training, weights stay float32 and autocast multiplies them in this dtype."""

    device: str
    dtype_name: str
    """`float32` or `bfloat16`."""

    @property
    def dtype(self) -> "torch.dtype":
        import torch

        return {"float32": torch.float32, "bfloat16": torch.bfloat16}[self.dtype_name]

    def autocast(self) -> "torch.autocast":
        """The mixed precision of training; disabled for float32."""
        import torch

        return torch.autocast(self.device, self.dtype, enabled=self.dtype != torch.float32)


def grey_tolerance(stored: dict[str, str]) -> int:
    """The largest allowed difference of a pixel between two fingerprints, in grey levels of 255."""
    return 24 if stored["dtype"] == "bfloat16" else 1


def logit_tolerance(stored: dict[str, str]) -> float:
    """The largest allowed difference of a logit of the same pixels between two fingerprints."""
    return 0.5 if stored["dtype"] == "bfloat16" else 1e-3
