"""Several processes, started by torchrun: gloo on CPU, NCCL on GPUs. Alone, every function here does nothing."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist
from torch import Tensor

from supermask.data import Share


@contextmanager
def processes(device: torch.device) -> Iterator[Share]:
    """Join the group that torchrun's environment names, for the length of a search; a lone process joins none."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield Share()
        return
    if device.type == "cuda":
        torch.cuda.set_device(device)
        dist.init_process_group("nccl", device_id=device)
    else:
        dist.init_process_group("gloo")
    try:
        yield Share(dist.get_rank(), dist.get_world_size())
        # Whoever leaves first closes connections that another may still be reading from.
        dist.barrier()
    finally:
        dist.destroy_process_group()


def rank() -> int:
    """This process's number among all, known before they join."""
    return int(os.environ.get("RANK", "0"))


def local_rank() -> int:
    """This process's number on its machine: the GPU it takes."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def barrier() -> None:
    """Wait for every process."""
    if dist.is_initialized():
        dist.barrier()


def summed(values: Tensor) -> Tensor:
    """The sum of `values` over all processes, in place."""
    if dist.is_initialized():
        dist.all_reduce(values)
    return values


def gathered(value: str) -> list[str]:
    """`value` of every process, by rank."""
    if not dist.is_initialized():
        return [value]
    values: list[str | None] = [None] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return [str(value) for value in values]
