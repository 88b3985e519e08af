"""What an operator is written with, and the table of those that there are.

The functions that `emits` registers, in `convolutions`, `shapes` and `activations`, write one operator each, for a
module and for its functional forms alike: their arguments are named and ordered as the functional form's, and the
module's attributes of these names fill them. They return the name of the value, or the names of several.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from supermask.errors import UsageError
from supermask.onnx.builder import Builder

Shape = tuple[int | None, ...]


class UnsupportedError(UsageError):
    """An operator, or a way to use it, that is not among those here."""


@dataclass(frozen=True)
class Value:
    """A tensor in the graph: its name and shape; None is a length that depends on the number of pictures.

    `tensor` is there where it is a parameter or a buffer of the module.
    """

    name: str
    shape: Shape
    tensor: Tensor | None = None


@dataclass(frozen=True)
class At:
    """Where an operator is written: the graph, and the shape (of several results: the shapes) of what it computes."""

    graph: Builder
    shape: Shape
    shapes: tuple[Shape, ...] = ()

    def like(self, value: str, shape: Shape | None = None) -> str:
        """`value` reshaped to what the operator computes, or to `shape`."""
        wanted = self.shape if shape is None else shape
        if None in wanted[1:]:
            raise UnsupportedError("moves the batch away from the first place")
        return self.graph.op("Reshape", value, self.graph.integers(*(-1 if n is None else n for n in wanted)))


Emitter = Callable[..., str | list[str]]
EMITTERS: dict[Any, Emitter] = {}


def emits(*keys: Any) -> Callable[[Emitter], Emitter]:
    """Register a function for module classes, functions, and names of tensor methods."""

    def register(emitter: Emitter) -> Emitter:
        EMITTERS.update(dict.fromkeys(keys, emitter))
        return emitter

    return register


def require(condition: bool, complaint: str) -> None:
    """Raise UnsupportedError unless `condition` holds."""
    if not condition:
        raise UnsupportedError(complaint)


def length(n: int | None) -> int:
    """A length that must not depend on the number of pictures."""
    if n is None:
        raise UnsupportedError("works along the batch")
    return n


def places(value: int | Sequence[int], n: int) -> list[int]:
    """A number for each of n dimensions."""
    return [value] * n if isinstance(value, int) else list(value)


def operand(at: At, value: Value | float) -> str:
    """A tensor's name, or a number as a constant."""
    return value.name if isinstance(value, Value) else at.graph.constant(value, np.float32)


def per_channel(at: At, values: Any, rank: int) -> str:
    """float32 [C] as a constant that broadcasts over [N, C, ...] of `rank` dimensions."""
    return at.graph.constant(np.asarray(values, dtype=np.float32).reshape(-1, *[1] * (rank - 2)))
