"""Two processes with torch.distributed over gloo, one thread each."""

from collections.abc import Callable
from pathlib import Path

import torch
from torch import distributed, multiprocessing

RankMain = Callable[[int, str], None]  # is given its rank and the folder


def run(rank_main: RankMain, folder: Path) -> None:
    """Run `rank_main` on both ranks, to the end."""
    multiprocessing.start_processes(_rank, (rank_main, str(folder)), nprocs=2, start_method="spawn")


def _rank(rank: int, rank_main: RankMain, folder: str) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    rank_main(rank, folder)
    distributed.barrier()  # a rank whose peer is gone before it leaves was seen to abort
    distributed.destroy_process_group()
