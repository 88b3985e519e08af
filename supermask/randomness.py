"""Everything random in a search, as a function of (seed, what for, epoch, step).

Nothing is carried from step to step, so a resumed search draws what an uninterrupted one draws.
"""

from __future__ import annotations

import hashlib

import torch


def derive(seed: int, *purpose: str | int) -> int:
    """A 63-bit seed for one purpose, such as derive(seed, "order", epoch)."""
    digest = hashlib.sha256(repr((seed, *purpose)).encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1


def generator(seed: int, *purpose: str | int, device: torch.device | str = "cpu") -> torch.Generator:
    """A generator seeded for one purpose."""
    return torch.Generator(device).manual_seed(derive(seed, *purpose))
