"""The check of an ONNX file: well-formed, and the same as torch and as the dense file in ONNX Runtime."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime as ort
import torch
from torch import Tensor, nn

from supermask.errors import ExportError

TOLERANCE = 1e-4  # of a picture's outputs, relative to the largest of them; ONNX Runtime and torch sum in other orders

Arrays = npt.NDArray[Any]

_errors = ort.capi.onnxruntime_pybind11_state
# What ONNX Runtime says to a file: they have no base of their own.
REFUSALS = (
    _errors.Fail,
    _errors.InvalidArgument,
    _errors.InvalidGraph,
    _errors.NotImplemented,
    _errors.RuntimeException,
)


@dataclass(frozen=True)
class Batch:
    """Pictures as the file takes them, and the same as torch's network does.

    Attributes:
        name: what they are, for messages.
        given: float32 [N, C, H, W], or uint8 [N, H, W, C].
        seen: float32 [N, C, H, W], normalised.
    """

    name: str
    given: Arrays
    seen: Tensor


@dataclass(frozen=True)
class Agreement:
    """How ONNX Runtime agrees with torch.

    Attributes:
        pictures: how many were compared.
        difference: the largest difference of outputs, relative to the largest output of its picture.
        same_class: of how many the predicted class is the same.
    """

    pictures: int
    difference: float
    same_class: int


def session(content: bytes) -> ort.InferenceSession:
    """A session on the CPU.

    Raises:
        ExportError: ONNX Runtime refuses the file.
    """
    options = ort.SessionOptions()
    options.log_severity_level = 3  # errors
    try:
        return ort.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    except REFUSALS as error:
        raise ExportError(f"ONNX Runtime {ort.__version__} does not load the file ({_first_line(error)})") from error


def check(content: bytes, dense: bytes | None, model: nn.Module, batches: Iterable[Batch]) -> Agreement:
    """Check a file before it is put in place.

    Args:
        content: the file.
        dense: the file with dense weights, which must give the same bits; None if `content` is dense itself.
        model: what torch computes from `Batch.seen`.
        batches: pictures to compare on.

    Raises:
        ExportError: the file breaks ONNX's rules, or computes something else; says what.
    """
    try:
        onnx.checker.check_model(content, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise ExportError(f"the file breaks a rule of ONNX ({_first_line(error)})") from error
    small, large = session(content), session(dense) if dense else None
    pictures, difference, same_class = 0, 0.0, 0
    for batch in batches:
        ours = _run(small, batch)
        if large and _run(large, batch).tobytes() != ours.tobytes():
            raise ExportError(f"on {batch.name} the file gives other bits than the one with dense weights")
        with torch.no_grad():
            theirs = model(batch.seen).numpy()
        difference = max(difference, _difference(ours, theirs, batch.name))
        same_class += int((ours.argmax(1) == theirs.argmax(1)).sum())
        pictures += len(ours)
    return Agreement(pictures, difference, same_class)


def _run(runtime: ort.InferenceSession, batch: Batch) -> Arrays:
    outputs: list[Arrays] = runtime.run(None, {runtime.get_inputs()[0].name: batch.given})
    return outputs[0]


def _difference(ours: Arrays, theirs: Arrays, name: str) -> float:
    if ours.shape != theirs.shape:
        raise ExportError(f"on {name} ONNX Runtime gives {list(ours.shape)}, torch {list(theirs.shape)}")
    if not np.isfinite(theirs).all():
        raise ExportError(f"on {name} torch's own outputs are not finite, so that nothing can be compared")
    scale = np.abs(theirs).max(axis=1, keepdims=True)
    difference = float((np.abs(ours - theirs) / np.maximum(scale, np.finfo(np.float32).tiny)).max())
    # Written so that NaN fails too.
    if not difference <= TOLERANCE:
        raise ExportError(f"on {name} ONNX Runtime differs from torch by {difference:.1e}, more than {TOLERANCE:.0e}")
    return difference


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
