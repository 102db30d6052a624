"""Collectives of the ranks of a training: a maximum, or short texts, as tensors. A single rank gets its own value back.

Each call is a collective: every rank must make it, in the same order.
"""

import torch
from torch import Tensor, distributed

MAX_BYTES = 4096  # of a rank's text; the rest is cut off


def maximum(value: float) -> float:
    """The largest of the ranks' values, the same float on each of them."""
    if _alone():
        return value
    values = torch.tensor([value], device=_device(), dtype=torch.float64)
    distributed.all_reduce(values, distributed.ReduceOp.MAX)
    return float(values.item())


def gather_text(text: str) -> list[str]:
    """The text of each rank, by rank."""
    if _alone():
        return [text]
    packed = _pack(text)
    every = [torch.empty_like(packed) for _ in range(distributed.get_world_size())]
    distributed.all_gather(every, packed)
    return [_unpack(one) for one in every]


def first_text(text: str) -> str:
    """The text of the lowest rank that has one; empty if none has, which costs one small collective."""
    if maximum(float(bool(text))) == 0.0:
        return ""
    return next(one for one in gather_text(text) if one)


def _alone() -> bool:
    return not distributed.is_initialized() or distributed.get_world_size() == 1


def _device() -> str:
    return "cuda" if distributed.get_backend() == "nccl" else "cpu"


def _pack(text: str) -> Tensor:
    data = text.encode()[:MAX_BYTES]
    return torch.tensor([*data, *bytes(MAX_BYTES - len(data))], device=_device(), dtype=torch.uint8)


def _unpack(packed: Tensor) -> str:
    return bytes(packed.tolist()).rstrip(b"\0").decode(errors="ignore")
