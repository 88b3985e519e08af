"""From a module to an ONNX graph: traced by torch.fx, written operator by operator."""

from __future__ import annotations

import inspect
import operator
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from supermask.onnx import activations, convolutions  # noqa: F401 - they register their operators
from supermask.onnx.builder import Builder
from supermask.onnx.operators import EMITTERS, At, Emitter, Shape, UnsupportedError, Value
from supermask.onnx.shapes import reshaped

# Arguments that are tensors of the module, not settings.
TENSORS = ("weight", "bias", "running_mean", "running_var")
# Two numbers of pictures: what differs between their shapes depends on the batch.
TRIALS = (2, 3)

IN_PLACE = (operator.iadd, operator.isub, operator.imul, operator.itruediv)


class Varies:
    """A number that depends on how many pictures there are."""


def add_network(graph: Builder, model: nn.Module, picture: Sequence[int], given: str, weights: Iterable[str]) -> Value:
    """Add what `model` computes to the graph.

    Args:
        graph: to write to.
        model: in evaluation mode, on the CPU.
        picture: shape [C, H, W] of an input, normalised float32.
        given: name of the input, [N, C, H, W].
        weights: names of parameters that are in the graph already, under these names.

    Returns:
        The logits.

    Raises:
        UnsupportedError: an operator has no counterpart here; names it and its place.
    """
    traced = _traced(model)
    small, large = (_Results(model, traced, n, picture) for n in TRIALS)
    return _Writer(graph, model, traced, set(weights)).write(given, small.results, large.results)


class _Tracer(fx.Tracer):
    """Traces down to the modules that have an operator here, and to PyTorch's own."""

    record_stack_traces = True

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return emitter_of(m) is not None or super().is_leaf_module(m, module_qualified_name)


def emitter_of(module: nn.Module) -> Emitter | None:
    """What writes a module: that of its class, or of the one whose forward it inherits."""
    for kind in type(module).__mro__:
        if kind in EMITTERS:
            inherited = kind.forward  # type: ignore[attr-defined]
            return EMITTERS[kind] if type(module).forward is inherited else None
    return None


def _traced(model: nn.Module) -> fx.Graph:
    try:
        return _Tracer().trace(model)
    # TraceError is control flow by values; the rest is what functions of Python say of a tensor that has none.
    except (fx.proxy.TraceError, TypeError, RuntimeError, ValueError, AttributeError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0].split(". ")[0]
        raise UnsupportedError(f"torch.fx cannot trace {type(model).__name__} ({reason})") from error


class _Results(fx.Interpreter):
    """What every node gives for n pictures, without computing anything: tensors have shapes only."""

    def __init__(self, model: nn.Module, traced: fx.Graph, n: int, picture: Sequence[int]) -> None:
        super().__init__(model, graph=traced)
        self.results: dict[fx.Node, Any] = {}
        with FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad():
            self.run(torch.empty(n, *picture))

    def run_node(self, n: fx.Node) -> Any:
        self.results[n] = super().run_node(n)
        return self.results[n]


class _Writer:
    def __init__(self, graph: Builder, model: nn.Module, traced: fx.Graph, weights: set[str]) -> None:
        self.graph, self.model, self.traced, self.weights = graph, model, traced, weights
        self.values: dict[fx.Node, Any] = {}

    def write(self, given: str, small: dict[fx.Node, Any], large: dict[fx.Node, Any]) -> Value:
        """Write every node; the results for two numbers of pictures tell the shapes."""
        for node in self.traced.nodes:
            if node.op == "output":
                return self._logits(node)
            shapes = _shapes(small[node], large[node])
            if shapes is None:
                self.values[node] = small[node] if small[node] == large[node] else Varies()
            elif node.op == "placeholder":
                self.values[node] = Value(given, shapes[0])
            elif node.op == "get_attr":
                self.values[node] = self._tensor(str(node.target))
            else:
                try:
                    self.values[node] = self._written(node, shapes)
                except UnsupportedError as error:
                    raise UnsupportedError(f"{self._place(node)} {error}") from error
        raise AssertionError("a traced graph has an output")

    def _written(self, node: fx.Node, shapes: list[Shape]) -> Value | list[Value]:
        args: Any
        kwargs: Any
        args, kwargs = fx.node.map_aggregate((node.args, node.kwargs), self._value)
        if node.op == "call_module":
            module = self.model.get_submodule(str(node.target))
            emitter = emitter_of(module)
            kwargs = self._settings(str(node.target), module, emitter) if emitter else {}
        elif node.target is operator.getitem and isinstance(args[0], list):
            number: Any = args[1]
            part: Value = args[0][number]
            return part
        else:
            emitter = EMITTERS.get(node.target) or EMITTERS.get(_named(node.target))
        if emitter is None:
            raise UnsupportedError("has no operator here")
        if emitter is not reshaped and any(isinstance(value, Varies) for value in _flat((args, kwargs))):
            raise UnsupportedError("computes with the number of pictures")
        try:
            bound = inspect.signature(emitter).bind(None, *args, **kwargs).arguments
        except TypeError as error:
            raise UnsupportedError(f"is called in a way that has no operator here ({error})") from error
        self.graph.scope = f"/{node.name}"  # no parameter's name begins so
        written = emitter(At(self.graph, shapes[0], tuple(shapes)), *args, **kwargs)
        if isinstance(written, str):
            value = Value(written, shapes[0])
            if bound.get("inplace") or _named(node.target).endswith("_") or node.target in IN_PLACE:
                # Whoever reads what was overwritten reads the result.
                self.values[node.all_input_nodes[0]] = value
            return value
        return [Value(name, shape) for name, shape in zip(written, shapes, strict=True)]

    def _value(self, argument: Any) -> Any:
        return self.values[argument] if isinstance(argument, fx.Node) else argument

    def _settings(self, path: str, module: nn.Module, emitter: Emitter) -> dict[str, Any]:
        """The emitter's arguments that the module has as attributes."""
        settings = {}
        for name in list(inspect.signature(emitter).parameters)[2:]:
            if name in TENSORS:
                settings[name] = None if getattr(module, name, None) is None else self._tensor(f"{path}.{name}")
            elif hasattr(module, name):
                settings[name] = getattr(module, name)
        return settings

    def _tensor(self, name: str) -> Value:
        """A parameter or a buffer."""
        owner, _, attribute = name.rpartition(".")
        tensor: Tensor = getattr(self.model.get_submodule(owner), attribute).detach()
        known = name if name in self.weights else f"state/{name}"
        if known not in self.weights:
            self.graph.constant(tensor.numpy(), name=known)
            self.weights.add(known)
        return Value(known, tuple(tensor.shape), tensor)

    def _logits(self, node: fx.Node) -> Value:
        logits = self._value(node.args[0])
        if not isinstance(logits, Value) or len(logits.shape) != 2 or logits.shape[0] is not None:
            raise UnsupportedError(f"{type(self.model).__name__} gives something else than logits [N, classes]")
        return logits

    def _place(self, node: fx.Node) -> str:
        """The node as a person finds it: the module's path and class, or the function and where it is called."""
        if node.op == "call_module":
            return f"{node.target} ({type(self.model.get_submodule(str(node.target))).__name__})"
        what = node.target if isinstance(node.target, str) else _named(node.target).rpartition(".")[2]
        stack = node.meta.get("nn_module_stack") or {}
        inside = [f"{path} ({getattr(kind, '__name__', kind)})" for path, kind in stack.values() if path]
        return f"{what} in {inside[-1] if inside else type(self.model).__name__}"


def _shapes(small: Any, large: Any) -> list[Shape] | None:
    """The shapes of a node's tensor or tensors, None for what is none."""
    if isinstance(small, Tensor):
        return [tuple(n if n == m else None for n, m in zip(small.shape, large.shape, strict=True))]
    if isinstance(small, list | tuple) and small and all(isinstance(part, Tensor) for part in small):
        return [shape for pair in zip(small, large, strict=False) for shape in _shapes(*pair) or []]
    return None


def _flat(value: Any) -> list[Any]:
    if isinstance(value, dict):
        return [part for item in value.values() for part in _flat(item)]
    if isinstance(value, list | tuple):
        return [part for item in value for part in _flat(item)]
    return [value]


def _named(function: Any) -> str:
    """The full name of a function: how those are known that take long to import."""
    return f"{getattr(function, '__module__', '')}.{getattr(function, '__name__', function)}"
