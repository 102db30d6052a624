"""What the ranks of a training tell each other: a number, or a few words, as tensors. A rank alone hears itself.

Each call is a collective: every rank must come to it, as often as the others.
"""

import torch
from torch import Tensor, distributed

MAX_BYTES = 4096  # of what a rank says; the rest is cut off


def maximum(value: float) -> float:
    """The largest of the ranks' values, the same float on each of them."""
    if _alone():
        return value
    values = torch.tensor([value], device=_device(), dtype=torch.float64)
    distributed.all_reduce(values, distributed.ReduceOp.MAX)
    return float(values.item())


def gather_text(words: str) -> list[str]:
    """What each rank says, by rank."""
    if _alone():
        return [words]
    said = _pack(words)
    every = [torch.empty_like(said) for _ in range(distributed.get_world_size())]
    distributed.all_gather(every, said)
    return [_unpack(one) for one in every]


def first_text(words: str) -> str:
    """What the lowest rank says that says anything; empty if none does, which costs one small collective."""
    if maximum(float(bool(words))) == 0.0:
        return ""
    return next(said for said in gather_text(words) if said)


def _alone() -> bool:
    return not distributed.is_initialized() or distributed.get_world_size() == 1


def _device() -> str:
    return "cuda" if distributed.get_backend() == "nccl" else "cpu"


def _pack(words: str) -> Tensor:
    data = words.encode()[:MAX_BYTES]
    return torch.tensor([*data, *bytes(MAX_BYTES - len(data))], device=_device(), dtype=torch.uint8)


def _unpack(said: Tensor) -> str:
    return bytes(said.tolist()).rstrip(b"\0").decode(errors="ignore")
