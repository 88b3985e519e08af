"""torch's own exporter, for networks with operators that `operators` does not know: dense weights only."""

from __future__ import annotations

import importlib.util
import warnings

import onnx
import torch
from torch import Tensor, nn

from supermask.onnx.operators import UnsupportedError


def by_torch(model: nn.Module, example: Tensor, given: str, output: str, reason: UnsupportedError) -> onnx.ModelProto:
    """The ONNX model that `torch.onnx.export` makes, with a dynamic batch.

    Args:
        model: in evaluation mode on the CPU.
        example: an input for it.
        given: name of the input.
        output: name of the output.
        reason: why the network cannot be written operator by operator.

    Raises:
        UnsupportedError: the exporter is not installed or cannot write the network either.
    """
    if importlib.util.find_spec("onnxscript") is None:
        raise UnsupportedError(f"{reason}; torch's own exporter may have one: pip install onnxscript") from reason
    try:
        with warnings.catch_warnings():
            # It uses what torch has deprecated since.
            warnings.simplefilter("ignore")
            program = torch.onnx.export(
                model,
                (example,),
                dynamo=True,
                input_names=[given],
                output_names=[output],
                dynamic_shapes=({0: torch.export.Dim("N")},),
                verbose=False,
            )
    except torch.onnx.errors.OnnxExporterError as error:
        raise UnsupportedError(f"{reason}, and torch's own exporter fails ({_first_line(error)})") from error
    assert program is not None
    return program.model_proto


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
