"""supermask strategies, zoo and recipes: what is installed."""

from __future__ import annotations

import inspect
from typing import Annotated, Any

import typer

from supermask.cli.output import AsJson, percent, print_json, print_table

Name = Annotated[str | None, typer.Argument(metavar="NAME", help="Show this one.", show_default=False)]


def register(app: typer.Typer) -> None:
    """Add the commands to the command line."""
    app.command(epilog="Examples:\n\n    supermask strategies\n\n    supermask strategies edge-popup")(strategies)
    app.command(epilog="Examples:\n\n    supermask zoo\n\n    supermask zoo conv4\n\n    supermask zoo --hub")(zoo)
    app.command(epilog="Examples:\n\n    supermask recipes\n\n    supermask recipes conv4-cifar10 > my.toml")(recipes)


def strategies(name: Name = None, as_json: AsJson = False) -> None:
    """List the installed mask searches, or show one's options."""
    if name is None:
        rows = _rows("strategies")
        print_json(rows) if as_json else print_table([[*row.values()] for row in rows], header=[*rows[0]])
        return
    from supermask.registry import strategy_class

    chosen = strategy_class(name)
    options = [
        {
            "option": key,
            "default": field.default,
            "type": _type_name(field.annotation),
            "about": field.description or "",
        }
        for key, field in chosen.model_fields.items()
    ]
    _show(name, inspect.getdoc(chosen) or "", options, as_json)


def zoo(
    name: Name = None,
    hub: Annotated[bool, typer.Option("--hub", help="List artifacts on the Hugging Face Hub too.")] = False,
    as_json: AsJson = False,
) -> None:
    """List the installed architectures and recipes, or show one architecture's arguments."""
    if name is None:
        _list_zoo(hub, as_json)
        return
    from supermask.registry import architecture

    function: Any = architecture(name)
    arguments = [
        {"option": key, "default": argument.default, "type": str(argument.annotation), "about": ""}
        for key, argument in inspect.signature(function).parameters.items()
        if argument.default is not inspect.Parameter.empty
    ]
    _show(name, inspect.getdoc(function.func) or "", arguments, as_json)


def _list_zoo(hub: bool, as_json: bool) -> None:
    from supermask import registry

    architectures = _rows("architectures")
    heads = {name: text.splitlines()[0].removeprefix("# ") for name, text in registry.recipes().items()}
    shared = _on_hub() if hub else []
    if as_json:
        listed: dict[str, Any] = {"architectures": architectures, "recipes": heads}
        print_json({**listed, "hub": shared} if hub else listed)
        return
    print_table([[*row.values()] for row in architectures], header=("architecture", "package", "object"))
    print()
    print_table(heads.items(), header=("recipe", "what it is"))
    if hub:
        print()
        header = ("on the Hub", "accuracy", "of", "downloads", "updated")
        print_table([[str(value) for value in row.values()] for row in shared], header=header, numbers=(1, 3))


def _on_hub() -> list[dict[str, Any]]:
    from supermask.hub import found

    rows = []
    for model in found():
        results = (model.card_data and model.card_data.eval_results) or []
        # A stranger's card may hold anything.
        told = [
            (result.metric_value, result.dataset_name)
            for result in results
            if result.metric_type == "accuracy"
            and isinstance(result.metric_value, (int, float))
            and 0 <= result.metric_value <= 1
        ]
        accuracy, data = told[0] if told else (None, "")
        rows.append(
            {
                "name": model.id,
                "accuracy": "" if accuracy is None else percent(accuracy),
                "data": data,
                "downloads": model.downloads or 0,
                "updated": f"{model.last_modified:%Y-%m-%d}" if model.last_modified else "",
            }
        )
    return rows


def recipes(name: Name = None, as_json: AsJson = False) -> None:
    """List the installed recipes, or print one's TOML."""
    import tomllib

    from supermask import registry

    if name is not None:
        text = registry.recipe(name)
        print_json(tomllib.loads(text)) if as_json else print(text, end="")
        return
    heads = {name: text.splitlines()[0].removeprefix("# ") for name, text in registry.recipes().items()}
    print_json(heads) if as_json else print_table(heads.items(), header=("recipe", "what it is"))


def _rows(kind: str) -> list[dict[str, str]]:
    from supermask.registry import installed, package_of

    return [
        {"name": name, "package": package_of(point), "object": point.value} for name, point in installed(kind).items()
    ]


def _show(name: str, about: str, options: list[dict[str, Any]], as_json: bool) -> None:
    if as_json:
        print_json({"name": name, "about": about, "options": options})
        return
    print(f"{name}: {about}")
    if options:
        print()
        rows = [(o["option"], str(o["default"]), o["type"], o["about"]) for o in options]
        print_table(rows, header=("option", "default", "type", ""))


def _type_name(annotation: Any) -> str:
    return annotation.__name__ if isinstance(annotation, type) else str(annotation).replace("typing.", "")
