"""The weights of a subnetwork in an ONNX graph: from the seed, five to a byte, or as they are.

In the two small forms a byte tells several weights at once. It is the number of a row of a table that holds the weights
0, c and -c, so a weight is looked up (Gather), never computed: no rounding, no -0.0. Nothing of it depends on the
graph's input, so ONNX Runtime computes it once, when a session is made (constant folding), and runs at the speed of
the dense file.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import accumulate
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt
from onnx import TensorProto, numpy_helper

from supermask.artifact import Artifact
from supermask.bitpack import packed_size
from supermask.draw import PARITY, ROTATIONS, key_of
from supermask.errors import UsageError
from supermask.manifest import LayerEntry
from supermask.onnx.builder import Builder

Form = Literal["seed", "ternary", "dense"]
FORMS: tuple[Form, ...] = get_args(Form)
Dtype = Literal["float32", "float16"]
DTYPES: tuple[Dtype, ...] = get_args(Dtype)

# BitwiseAnd, Or and Xor came with opset 18; Gather and the rest have been as they are since 13.
OPSETS: dict[Form, int] = {"seed": 18, "ternary": 13, "dense": 13}

Float32s = npt.NDArray[np.float32]
Weights = Mapping[str, Float32s]
Table = npt.NDArray[np.integer[Any]]

WEIGHTS_PER_BLOCK = 64  # a block of the stream is two words, a bit a weight
BYTES_PER_BLOCK = 8
TRITS_PER_BYTE = 5  # 3^5 = 243 of 256 values: 1.6 bits a weight, where log2(3) = 1.585 is the least

# Rows of these tables hold the weights' kinds: 0 is zero, 1 is +c, 2 is -c.
_BYTES = np.arange(256, dtype=np.uint8)[:, None]
_BITS = _BYTES >> np.arange(8) & 1
KEPT = _BITS  # a byte of a mask: eight weights, each +c or zero
SIGN = np.where(_BITS == 1, 1, 2)  # a byte of the stream: eight weights, each +c or -c
KEPT_AND_SIGN = np.where(_BITS[:, :4] == 1, SIGN[:, 4:], 0)  # four bits of a mask, and above them four of the stream
TRITS = _BYTES[: 3**TRITS_PER_BYTE] // 3 ** np.arange(TRITS_PER_BYTE) % 3  # the first weight is the least trit


def form_of(artifact: Artifact, weights: Weights, asked: Form | None) -> Form:
    """The form that was asked for, or else the smallest in which the artifact can be written.

    Raises:
        UsageError: a layer cannot be written in the form that was asked for; names it.
    """
    complaints = {"seed": _not_drawn(artifact), "ternary": _not_ternary(artifact, weights), "dense": None}
    smallest = next(form for form in FORMS if complaints[form] is None)
    if asked is not None and complaints[asked] is not None:
        raise UsageError(f"--weights {asked}: {complaints[asked]}; take --weights {smallest}")
    return asked or smallest


def _not_drawn(artifact: Artifact) -> str | None:
    for layer in artifact.config.layers:
        if layer.values != "seed":
            return f"layer {layer.name} has {layer.values} values, which no seed draws"
        if layer.distribution not in ("signed-constant", "constant"):
            return f"layer {layer.name} is drawn {layer.distribution}, not as a signed constant"
    return None


def _not_ternary(artifact: Artifact, weights: Weights) -> str | None:
    for layer in artifact.config.layers:
        if layer.masked and constant_of(weights[layer.name]) is None:
            return f"layer {layer.name} has other weights than -c, 0 and c"
    return None


def constant_of(weights: Float32s) -> np.float32 | None:
    """The c >= 0 for which every weight is -c, 0 or c, if there is one."""
    size = np.abs(weights)
    largest = size.max()
    return largest if np.isfinite(largest) and bool(np.all((size == 0) | (size == largest))) else None


def add_weights(graph: Builder, artifact: Artifact, weights: Weights, form: Form, dtype: Dtype) -> None:
    """Add every layer's weights to the graph, as float32 values of the layers' shapes and names.

    Args:
        graph: for the opset that `OPSETS` says.
        artifact: masks, seed and layers.
        weights: float32 of every layer's shape, as the artifact's reader materialises them.
        form: one that `form_of` allows.
        dtype: in which dense weights are stored.
    """
    if form == "seed":
        _add_from_seed(graph, artifact)
        return
    for layer in artifact.config.layers:
        values = weights[layer.name]
        c = constant_of(values) if form == "ternary" else None
        if c is not None:
            packed = graph.constant(pack_trits(values), name=f"trits/{layer.name}")
            _add_looked_up(graph, layer, packed, TRITS, c)
        else:
            _add_dense(graph, layer, values, dtype)


def _add_dense(graph: Builder, layer: LayerEntry, values: Float32s, dtype: Dtype) -> None:
    if dtype == "float32":
        graph.constant(values, name=layer.name)
        return
    half = graph.constant(values, np.float16, name=f"float16/{layer.name}")
    graph.op("Cast", half, name=layer.name, to=TensorProto.FLOAT)


def pack_trits(values: Float32s) -> npt.NDArray[np.uint8]:
    """Weights -c, 0, c in C order as uint8 [ceil(n/5)], in each byte the sum of kind * 3^place; padding is 0."""
    kinds = np.where(values > 0, 1, np.where(values < 0, 2, 0)).astype(np.uint8).reshape(-1)
    rows = np.pad(kinds, (0, -kinds.size % TRITS_PER_BYTE)).reshape(-1, TRITS_PER_BYTE)
    return rows @ (3 ** np.arange(TRITS_PER_BYTE)).astype(np.uint8)


def _add_from_seed(graph: Builder, artifact: Artifact) -> None:
    layers = artifact.config.layers
    drawn = [layer for layer in layers if layer.distribution == "signed-constant"]
    streams = _add_streams(graph, artifact.config.seed, drawn)
    for layer in layers:
        graph.scope = f"weights/{layer.name}"
        assert layer.std is not None
        c, stream, mask = np.float32(layer.std), streams.get(layer.name), f"mask/{layer.name}"
        if layer.masked:
            graph.constant(artifact.tensors[mask].numpy(), name=mask)
        if layer.masked and stream:
            _add_looked_up(graph, layer, _interleaved(graph, mask, stream), KEPT_AND_SIGN, c)
        elif layer.masked:
            _add_looked_up(graph, layer, mask, KEPT, c)
        elif stream:
            _add_looked_up(graph, layer, stream, SIGN, c)
        else:
            graph.op("Expand", graph.constant(c), graph.integers(*layer.shape), name=layer.name)


def _add_looked_up(graph: Builder, layer: LayerEntry, rows: str, table: Table, c: np.float32) -> None:
    """The layer's weights, of which each of `rows` (uint8) gives as many as a row of `table` has."""
    graph.scope = f"weights/{layer.name}"
    kinds, places = (graph.cast(value, TensorProto.INT32) for value in (graph.constant(table, np.uint8), rows))
    constants = graph.op("Gather", graph.constant(np.array([0, c, -c], np.float32)), kinds)
    values = graph.op("Gather", constants, places)
    told = TRITS_PER_BYTE if table is TRITS else 8  # by a byte of the file
    if layer.n % told:
        flat = graph.op("Reshape", values, graph.integers(-1))
        values = graph.op("Slice", flat, graph.integers(0), graph.integers(layer.n))
    graph.op("Reshape", values, graph.integers(*layer.shape), name=layer.name)


def _interleaved(graph: Builder, mask: str, stream: str) -> str:
    """uint8 [n/8, 2]: rows of KEPT_AND_SIGN for each half of the bytes of a mask and a stream, the lower half first."""
    halves, four, low = (graph.constant(value, np.uint8) for value in ([0, 4], 4, 15))
    bytes_ = (graph.op("Unsqueeze", value, graph.integers(1)) for value in (mask, stream))
    kept, signs = (graph.op("BitShift", value, halves, direction="RIGHT") for value in bytes_)
    # The shift to the left drops the upper half.
    above = graph.op("BitShift", signs, four, direction="LEFT")
    return graph.op("BitwiseOr", graph.op("BitwiseAnd", kept, low), above)


def _add_streams(graph: Builder, seed: int, layers: Sequence[LayerEntry]) -> dict[str, str]:
    """By layer, the bytes of its stream, a bit for each weight: uint8 [ceil(n/8)].

    All layers' blocks stand behind one another in one vector, so that the file holds the generator once.
    """
    if not layers:
        return {}
    graph.scope = "stream"
    keys = [key_of(seed, layer.name) for layer in layers]
    blocks = [-(-layer.n // WEIGHTS_PER_BLOCK) for layer in layers]
    ends = list(accumulate(blocks))

    def for_each_block(of_layers: Iterable[int]) -> str:
        parts = [
            graph.op("ConstantOfShape", graph.integers(length), value=numpy_helper.from_array(_int32(value).reshape(1)))
            for value, length in zip(of_layers, blocks, strict=True)
        ]
        return graph.op("Concat", *parts, axis=0)

    key = [
        for_each_block(k0 for k0, _ in keys),
        for_each_block(k1 for _, k1 in keys),
        for_each_block(PARITY ^ k0 ^ k1 for k0, k1 in keys),
    ]
    places = graph.op("Range", *(graph.constant(value, np.int32) for value in (0, ends[-1], 1)))
    counter = graph.op("Sub", places, for_each_block([0, *ends[:-1]]))
    words = [
        graph.op("Unsqueeze", graph.cast(word, TensorProto.UINT32), graph.integers(1, 2))
        for word in _threefry(graph, key, counter)
    ]
    shifts, byte = graph.constant([0, 8, 16, 24], np.uint32), graph.constant(255, np.uint32)
    shifted = graph.op("BitShift", graph.op("Concat", *words, axis=1), shifts, direction="RIGHT")
    stream = graph.cast(graph.op("BitwiseAnd", shifted, byte), TensorProto.UINT8)
    lengths = graph.integers(*(BYTES_PER_BLOCK * length for length in blocks))
    names = [f"stream/{layer.name}" for layer in layers]
    graph.ops("Split", [graph.op("Reshape", stream, graph.integers(-1)), lengths], names, axis=0)
    return {
        layer.name: graph.op("Slice", name, graph.integers(0), graph.integers(packed_size(layer.n)))
        for layer, name in zip(layers, names, strict=True)
    }


def _threefry(graph: Builder, key: Sequence[str], counter: str) -> tuple[str, str]:
    """The two words of each block (int32), as `supermask.draw.threefry2x32` computes them, for counters below 2^32.

    Words are int32, since ONNX Runtime adds uint32 from version 1.22 on only; sums wrap either way. Shifts take uint32
    alone.
    """
    x0, x1 = graph.op("Add", counter, key[0]), key[1]
    for group in range(5):
        for rotation in ROTATIONS[group % 2]:
            x0 = graph.op("Add", x0, x1)
            word = graph.cast(x1, TensorProto.UINT32)
            left = graph.op("BitShift", word, graph.constant(rotation, np.uint32), direction="LEFT")
            right = graph.op("BitShift", word, graph.constant(32 - rotation, np.uint32), direction="RIGHT")
            rotated = graph.cast(graph.op("BitwiseOr", left, right), TensorProto.INT32)
            x1 = graph.op("BitwiseXor", rotated, x0)
        x0 = graph.op("Add", x0, key[(group + 1) % 3])
        x1 = graph.op("Add", graph.op("Add", x1, key[(group + 2) % 3]), graph.constant(group + 1, np.int32))
    return x0, x1


def _int32(word: int) -> npt.NDArray[np.int32]:
    return np.array(word, dtype=np.uint32).view(np.int32)
