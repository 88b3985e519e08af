"""An ONNX graph under construction."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from onnx import GraphProto, NodeProto, TensorProto, ValueInfoProto, helper, numpy_helper


class Builder:
    """Collects nodes and constants; every value has a name, and `op` returns the name of what it computes.

    Attributes:
        opset: the version of ONNX's operators that the nodes are written for.
        scope: what the names of new values begin with.
    """

    def __init__(self, opset: int) -> None:
        self.opset, self.scope = opset, "value"
        self.nodes: list[NodeProto] = []
        self.initializers: list[TensorProto] = []
        self._constants: dict[tuple[str, tuple[int, ...], bytes], str] = {}
        self._names: Counter[str] = Counter()

    def op(self, kind: str, *inputs: str, name: str | None = None, **attributes: Any) -> str:
        """The value of one operator of ONNX; an empty input is one left out."""
        (value,) = self.ops(kind, inputs, [name or self._fresh(self.scope)], **attributes)
        return value

    def ops(self, kind: str, inputs: Sequence[str], outputs: Sequence[str], **attributes: Any) -> list[str]:
        """The values, named `outputs`, of an operator that has several."""
        self.nodes.append(
            helper.make_node(kind, list(inputs), list(outputs), name=f"{kind}:{outputs[0]}", **attributes)
        )
        return list(outputs)

    def constant(self, value: npt.ArrayLike, dtype: npt.DTypeLike | None = None, name: str | None = None) -> str:
        """A constant; equal ones without a name of their own are one."""
        array = np.ascontiguousarray(value, dtype=dtype).reshape(np.shape(value))
        if name is None:
            key = (array.dtype.str, array.shape, array.tobytes())
            if key in self._constants:
                return self._constants[key]
            name = self._constants[key] = f"/constant.{len(self._constants)}"
        self.initializers.append(numpy_helper.from_array(array, name))
        return name

    def integers(self, *values: int) -> str:
        """A constant int64 vector, the form in which operators take shapes and axes."""
        return self.constant(values, np.int64)

    def cast(self, value: str, to: int) -> str:
        """`value` as the element type `to` (a member of TensorProto.DataType)."""
        return self.op("Cast", value, to=to)

    def mean(self, value: str, axes: Sequence[int], keepdims: bool = True) -> str:
        """The mean over `axes`, which opset 18 made an input."""
        if self.opset < 18:
            return self.op("ReduceMean", value, axes=list(axes), keepdims=int(keepdims))
        return self.op("ReduceMean", value, self.integers(*axes), keepdims=int(keepdims))

    def graph(self, name: str, inputs: Sequence[ValueInfoProto], outputs: Sequence[ValueInfoProto]) -> GraphProto:
        """The finished graph, without constants that no node takes."""
        taken = {value for node in self.nodes for value in node.input}
        constants = [constant for constant in self.initializers if constant.name in taken]
        return helper.make_graph(self.nodes, name, list(inputs), list(outputs), constants)

    def _fresh(self, stem: str) -> str:
        self._names[stem] += 1
        return stem if self._names[stem] == 1 else f"{stem}.{self._names[stem] - 1}"
