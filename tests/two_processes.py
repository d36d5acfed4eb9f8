"""Run a function in several processes connected by torch.distributed."""

import os

import faster
import torch
import torch.distributed as dist
from conftest import PATIENCE, forkserver


def together(work, folder, number=2):
    """Run `work(rank)` in each of `number` processes and return the results."""
    store = folder / f"store{len(list(folder.iterdir()))}"
    started = [
        forkserver().Process(target=_one, args=(work, folder, store, rank, number), daemon=True)
        for rank in range(number)
    ]
    for process in started:
        process.start()
    for process in started:
        process.join(PATIENCE)
    assert [process.exitcode for process in started] == [0] * number
    return [torch.load(folder / f"{rank}.result", weights_only=True) for rank in range(number)]


def _one(work, folder, store, rank, number):
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(number)}
    faster.omit_here()
    torch.manual_seed(rank)  # copies would draw the same random numbers
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=number)
    torch.save(work(rank), folder / f"{rank}.result")
    dist.destroy_process_group()
