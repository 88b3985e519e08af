"""What is installed: strategies, architectures, data sets and recipes, found through entry points.

Listing imports nothing. A name such as `torchvision:NAME` declares a family, whose function takes the part after the
colon as its first argument.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from difflib import get_close_matches
from functools import partial
from importlib.metadata import EntryPoint, entry_points
from importlib.resources import files
from typing import TYPE_CHECKING, Any

from supermask.errors import UsageError, did_you_mean

if TYPE_CHECKING:
    from torch import nn

    from supermask.datasets import Dataset
    from supermask.strategy import Strategy

# The group's plural noun -> its singular in messages.
SINGULAR = {
    "strategies": "strategy",
    "architectures": "architecture",
    "datasets": "data set",
    "recipes": "package of recipes",
}


def installed(kind: str) -> dict[str, EntryPoint]:
    """Every installed entry point of `kind` ("strategies", "architectures", "datasets", "recipes") by name.

    Raises:
        UsageError: two packages offer one name.
    """
    found: dict[str, EntryPoint] = {}
    claimed: dict[str, EntryPoint] = {}
    for point in sorted(entry_points(group=f"supermask.{kind}"), key=lambda point: point.name):
        # The same family, whatever it calls its member: `folder:PATH` and `folder:DIRECTORY`.
        family, colon, _ = point.name.partition(":")
        other = claimed.setdefault(family + colon, point)
        if other.value != point.value:
            raise UsageError(
                f"{SINGULAR[kind]} {point.name!r} is offered by both {package_of(other)} "
                f"({other.value}) and {package_of(point)} ({point.value}); uninstall one"
            )
        found[point.name] = point
    return found


def package_of(point: EntryPoint) -> str:
    """The distribution that brings an entry point."""
    return point.dist.name if point.dist is not None else "an unnamed package"


def find(kind: str, name: str) -> tuple[EntryPoint, tuple[str, ...]]:
    """The entry point of a name, and the family member it asks for, if any.

    Raises:
        UsageError: no installed package has that name.
    """
    known = installed(kind)
    if name in known and ":" not in name:
        return known[name], ()
    family, colon, member = name.partition(":")
    for declared, point in known.items():
        if colon and member and declared.startswith(f"{family}:"):
            return point, (member,)
    raise UsageError(f"unknown {SINGULAR[kind]} {name!r}; {did_you_mean(name, known)}")


def strategy_class(name: str) -> type[Strategy]:
    """The options class of the strategy `name`."""
    loaded: type[Strategy] = find("strategies", name)[0].load()
    return loaded


def strategy_name(strategy: Strategy) -> str:
    """The installed name of a strategy, or `module:Class` where its class is not installed under any."""
    path = f"{type(strategy).__module__}:{type(strategy).__qualname__}"
    for name, point in installed("strategies").items():
        # The entry point may name the class where it is re-exported, so compare the class when the text differs.
        if point.value == path or (
            point.value.endswith(f":{type(strategy).__qualname__}") and point.load() is type(strategy)
        ):
            return name
    return path


def architecture(name: str) -> Callable[..., nn.Module]:
    """The function that builds the architecture `name`; see `build` for its arguments."""
    point, member = find("architectures", name)
    return partial(point.load(), *member)


def build(name: str, args: Mapping[str, Any]) -> nn.Module:
    """The architecture `name` built with `args`; its weights are whatever the framework put there.

    Raises:
        UsageError: an unknown architecture or argument, or arguments with which it cannot be built.
    """
    from pydantic import ValidationError, validate_call

    function = architecture(name)
    allowed = inspect.signature(function).parameters
    for arg in args:
        if arg not in allowed:
            raise UsageError(f"architecture {name} has no argument {arg!r}; {did_you_mean(arg, allowed)}")
    try:
        # Checked against the function's annotations, so that "no" is not taken for true.
        return validate_call(config={"arbitrary_types_allowed": True})(function)(**args)
    except ValidationError as error:
        fault = error.errors()[0]
        value = f"{fault['loc'][0]} = {fault['input']!r}" if fault["loc"] else "its arguments"
        raise UsageError(f"architecture {name} with {value}: {fault['msg'].lower()}") from error
    except LookupError as error:
        if type(error) is not LookupError or len(error.args) != 2:
            raise  # an IndexError or a KeyError, say, which is a bug
        family, colon, member = name.partition(":")
        near = get_close_matches(member, error.args[1], n=1)
        hint = f"did you mean '{family}{colon}{near[0]}'?" if near else f"{family} has none with such a name"
        raise UsageError(f"unknown architecture {name!r}; {hint}") from error
    except ModuleNotFoundError as error:
        raise UsageError(f"architecture {name} needs the package {error.name}: pip install {error.name}") from error
    except (ValueError, TypeError, OverflowError) as error:
        raise UsageError(f"architecture {name} with {shown(args)}: {error}") from error


def shown(args: Mapping[str, Any]) -> str:
    """Arguments as a person writes them: `width = 0.5, num_classes = 10`."""
    return ", ".join(f"{key} = {value}" for key, value in args.items())


def open_dataset(name: str, **request: Any) -> Dataset:
    """The data set `name`, opened; `request` holds the fields of `supermask.datasets.Request`."""
    from supermask.datasets import Request

    point, member = find("datasets", name)
    dataset: Dataset = point.load()(*member, Request(**request))
    return dataset


def recipes() -> dict[str, str]:
    """The TOML text of every installed recipe by name.

    Raises:
        UsageError: two packages offer one name.
    """
    found: dict[str, str] = {}
    owners: dict[str, str] = {}
    for point in installed("recipes").values():
        for path in sorted(files(point.value).iterdir(), key=lambda path: path.name):
            name, dot, suffix = path.name.rpartition(".")
            if dot + suffix != ".toml":
                continue
            if name in found:
                both = f"{owners[name]} and {package_of(point)}"
                raise UsageError(f"recipe {name!r} is offered by both {both}; uninstall one")
            found[name], owners[name] = path.read_text("utf-8"), package_of(point)
    return found


def recipe(name: str) -> str:
    """The TOML text of the recipe `name`.

    Raises:
        UsageError: no installed package has it.
    """
    known = recipes()
    if name not in known:
        raise UsageError(f"no recipe {name!r}; {did_you_mean(name, known)}")
    return known[name]
