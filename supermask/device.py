"""Where and how precisely to compute, and what to say when that is not to be had."""

from __future__ import annotations

import ctypes
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from supermask.errors import DeviceMemoryError, UsageError

# Parameters of glibc's mallopt, from its malloc.h.
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4


def pick_device(name: str, local_rank: int = 0) -> torch.device:
    """The device `name` means: auto takes CUDA, else MPS, else the CPU; `cuda` takes the GPU of this process.

    Raises:
        UsageError: this machine, or this build of torch, has no such device.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    if name == "cuda":
        name = f"cuda:{local_rank}"
    if not re.fullmatch(r"cpu|mps|cuda:\d{1,3}", name):
        raise UsageError(f"device = {name!r}: expected auto, cpu, mps, cuda or cuda:N")
    device = torch.device(name)
    gpus = torch.cuda.device_count()
    if device.type == "cuda" and (device.index or 0) >= gpus:
        raise UsageError(f"device = {name}: torch {torch.__version__} sees {gpus} CUDA devices here; take --device cpu")
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise UsageError(f"device = {name}: torch {torch.__version__} sees no Apple GPU here; take --device cpu")
    return device


def pick_precision(name: str, device: torch.device) -> torch.dtype:
    """The type of activations: auto takes bfloat16 where the hardware multiplies it, else float32.

    On a CPU with AVX512-BF16 a conv4 step takes 0.12 s in bfloat16 against 0.30 s in float32 (batch 128, two cores).
    """
    if name == "auto":
        if device.type == "cuda":
            native = torch.cuda.is_bf16_supported(including_emulation=False)
        elif device.type == "cpu":
            abilities = torch.cpu.get_capabilities()
            native = bool(abilities.get("amx_bf16") or abilities.get("avx512_bf16"))
        else:
            native = False
        return torch.bfloat16 if native else torch.float32
    return torch.bfloat16 if name == "bfloat16" else torch.float32


def without_compiler(device: torch.device) -> str | None:
    """Why torch.compile does not work on `device`, found by compiling a sum, or None if it does."""
    try:
        torch.compile(torch.add)(torch.ones(1, device=device), 1.0)
    except RuntimeError as error:
        return f"torch.compile does not work here ({str(error).partition(chr(10))[0]})"
    return None


def keep_memory() -> None:
    """Let this process keep the memory that it frees, for what it computes next.

    glibc gives blocks of over 32 MB back when they are freed, and the kernel zeroes every page of the next one: a fifth
    of a resnet18-cifar search on two cores. Other C libraries are left as they are.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        mallopt(M_MMAP_MAX, 0)
        mallopt(M_TRIM_THRESHOLD, -1)


@contextmanager
def reported_memory(batch_size: int, accumulate: int = 1) -> Iterator[None]:
    """Turn a device that is out of memory into one line that says what to try."""
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError) as error:
        raise _too_large(batch_size, accumulate) from error
    except RuntimeError as error:
        # The CPU allocator has no exception type of its own.
        if "can't allocate memory" not in str(error):
            raise
        raise _too_large(batch_size, accumulate) from error


def _too_large(batch_size: int, accumulate: int) -> DeviceMemoryError:
    half = max(batch_size // 2, 1)
    return DeviceMemoryError(
        f"no memory left on the device for batch_size = {batch_size} in {accumulate} part(s); try --batch-size {half}, "
        f"or --set accumulate={2 * accumulate}, which takes half the memory for the same steps"
    )
