"""Networks in ONNX Runtime: from a file that `export` wrote, or from an artifact with no file in between."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import onnxruntime as ort
import torch
from pydantic import TypeAdapter, ValidationError
from torch import Tensor, nn

from supermask.artifact import Artifact
from supermask.errors import IntegrityError, NotFoundError, UsageError
from supermask.manifest import InputEntry
from supermask.network import load_into
from supermask.onnx.check import REFUSALS, Arrays
from supermask.onnx.export import Input, Layout, build, weights_of
from supermask.onnx.operators import UnsupportedError
from supermask.onnx.weights import Form, form_of

log = logging.getLogger(__name__)

T = TypeVar("T")

DEVICES = ("auto", "cpu", "cuda")
CPU, CUDA = "CPUExecutionProvider", "CUDAExecutionProvider"
# TF32 keeps 10 bits of a factor: the outputs would differ from the CPU's by 1e-3. The search for the fastest
# convolution is made again for every number of pictures, so it has to be a short one.
CUDA_OPTIONS = {"use_tf32": "0", "cudnn_conv_algo_search": "HEURISTIC"}
ERRORS, FATAL, WARNINGS = 3, 4, 2  # ONNX Runtime's levels of its log

_errors = ort.capi.onnxruntime_pybind11_state
NO_MODEL = (*REFUSALS, _errors.InvalidProtobuf, _errors.NoModel)


class GivenInput(InputEntry):
    """What a file says that it takes: `float` pictures that are normalised, or `uint8` ones that it normalises."""

    type: Input


@dataclass(frozen=True)
class Runtime:
    """A network in ONNX Runtime.

    Attributes:
        session: takes pictures, gives logits or probabilities.
        input: what it takes.
        labels: names of its classes, in their order; numbers where the artifact names none.
        softmax: it gives probabilities.
    """

    session: ort.InferenceSession
    input: GivenInput
    labels: tuple[str, ...]
    softmax: bool

    def outputs(self, pictures: Arrays) -> Arrays:
        """What the network gives, float32 [N, classes], for float32 [N, C, H, W] or uint8 [N, H, W, C].

        Raises:
            MemoryError: its device has too little for so many.
        """
        given = {self.session.get_inputs()[0].name: np.ascontiguousarray(pictures)}
        try:
            outputs: list[Arrays] = self.session.run(None, given)
        except _errors.RuntimeException as error:
            if "allocate memory" not in str(error):
                raise
            raise MemoryError(str(error)) from error
        return outputs[0]

    def probabilities(self, pictures: Arrays) -> Arrays:
        """Probabilities float64 [N, classes]; takes what `outputs` takes."""
        outputs = self.outputs(pictures).astype(np.float64)
        if self.softmax:
            return outputs
        powers = np.exp(outputs - outputs.max(axis=1, keepdims=True))
        shares: Arrays = powers / powers.sum(axis=1, keepdims=True)
        return shares


class Module(nn.Module):
    """A network in ONNX Runtime as a module: float32 [N, C, H, W] on the CPU to logits [N, classes]."""

    def __init__(self, runtime: Runtime) -> None:
        super().__init__()
        self.runtime = runtime

    def forward(self, pictures: Tensor) -> Tensor:
        """Logits of normalised pictures."""
        return torch.from_numpy(self.runtime.outputs(pictures.numpy()))


def of_artifact(artifact: Artifact, device: str = "auto", weights: Form | None = None) -> Runtime:
    """An artifact's network, exported in memory; it takes normalised float32 pictures and gives logits.

    Args:
        artifact: what `supermask.read` gives.
        device: as for `session_on`.
        weights: the form of the file that is not written, by default the smallest that the artifact allows.

    Raises:
        UsageError: no such device, or an operator that cannot be exported.
        ArtifactError: the architecture is not installed, or the weights' hash is wrong.
    """
    network = load_into(artifact)
    form = form_of(artifact, weights_of(artifact, network), weights)
    try:
        model = build(artifact, network, Layout(form))
    except UnsupportedError:
        if form == "dense":
            raise
        model = build(artifact, network, Layout("dense"))  # torch's own exporter writes nothing else
    session = session_on(device, model.SerializeToString())
    entry = artifact.config.input
    given = GivenInput(type="float", shape=entry.shape, mean=entry.mean, std=entry.std)
    return Runtime(session, given, _labels("the artifact", artifact.config.labels, session), softmax=False)


def open_file(path: Path, device: str = "auto") -> Runtime:
    """The network in a file that `supermask export` wrote.

    Raises:
        NotFoundError: there is no such file.
        UsageError: no such device, or the file is another program's, and does not say how pictures are prepared.
        IntegrityError: the file is damaged, or contradicts itself.
    """
    if not path.is_file():
        raise NotFoundError(f"no file {path}; write one with supermask export --onnx")
    try:
        session = session_on(device, str(path))
    except NO_MODEL as error:
        # "[ONNXRuntimeError] : 7 : INVALID_PROTOBUF : Load model from ..."
        reason = str(error).strip().partition("\n")[0].rpartition(" : ")[2]
        raise IntegrityError(
            f"{path} is neither an artifact's folder nor a sound ONNX file: ONNX Runtime {ort.__version__} does not "
            f"load it ({reason.rstrip('.')})"
        ) from error
    about = session.get_modelmeta().custom_metadata_map
    if "supermask.input" not in about:
        raise UsageError(
            f"{path} was not written by supermask export: it does not say how pictures are prepared for it; export the "
            "artifact with supermask export --onnx"
        )
    given = _stated(path, "supermask.input", about, TypeAdapter(GivenInput).validate_json)
    labels = _stated(path, "supermask.labels", about, TypeAdapter(list[str]).validate_json)
    channels, height, width = given.shape
    taken = session.get_inputs()[0]
    type_, shape = (
        ("tensor(uint8)", [height, width, channels])
        if given.type == "uint8"
        else ("tensor(float)", [channels, height, width])
    )
    if taken.type != type_ or taken.shape[1:] != shape or {len(given.mean), len(given.std)} != {channels}:
        raise IntegrityError(f"{path}: supermask.input says {given.type} {given.shape}, the graph takes otherwise")
    return Runtime(
        session, given, _labels(str(path), labels, session), softmax=session.get_outputs()[0].name == "probabilities"
    )


def _stated(path: Path, key: str, about: dict[str, str], parse: Callable[[str], T]) -> T:
    try:
        return parse(about.get(key, "[]"))
    except ValidationError as error:
        raise IntegrityError(f"{path}: {key}: {error.errors()[0]['msg'].lower()}; export it again") from error


def _labels(where: str, labels: Sequence[str], session: ort.InferenceSession) -> tuple[str, ...]:
    classes: Any = session.get_outputs()[0].shape[1]
    if labels and len(labels) != classes:
        raise IntegrityError(f"{where} names {len(labels)} classes, the network has {classes}")
    return tuple(labels) or tuple(map(str, range(classes)))


def session_on(device: str, model: bytes | str) -> ort.InferenceSession:
    """A session on a device.

    Args:
        device: `cpu`, `cuda`, or `auto`: CUDA where ONNX Runtime can use it, else the CPU.
        model: an ONNX file's content or name.

    Raises:
        UsageError: an unknown device, or one that is not here.
        NO_MODEL: ONNX Runtime refuses the model.
    """
    if device not in DEVICES:
        raise UsageError(f"--device {device}: ONNX Runtime computes on {', '.join(DEVICES[:-1])} or {DEVICES[-1]} here")
    session = None
    if device != "cpu" and CUDA in ort.get_available_providers():
        # The build for GPUs lists CUDA on every machine. What fails without a GPU or its libraries is said below, in
        # one line, instead of by its log.
        ort.set_default_logger_severity(FATAL)
        with suppress(RuntimeError, _errors.EPFail, *NO_MODEL):
            session = _session(model, [(CUDA, CUDA_OPTIONS), CPU])
        ort.set_default_logger_severity(WARNINGS)
    session = session or _session(model, [CPU])
    on_cuda = CUDA in session.get_providers()
    if device == "cuda" and not on_cuda:
        raise UsageError(
            f"--device cuda: ONNX Runtime {ort.__version__} finds no GPU here, or not the CUDA libraries that it was "
            "built for; take --device cpu"
        )
    where = "CUDA" if on_cuda else "the CPU, as asked" if device == "cpu" else "the CPU: there is no CUDA here"
    log.info("ONNX Runtime %s computes on %s", ort.__version__, where)
    return session


def _session(model: bytes | str, providers: list[Any]) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.log_severity_level = ERRORS
    # Its fallback prints to stdout.
    return ort.InferenceSession(model, options, providers=providers, enable_fallback=0)
