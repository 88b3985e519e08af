"""What the documentation says can be typed, typed."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

import pytest

from supermask import export_onnx
from supermask.config import parse, resolve, setting
from supermask.draw import DISTRIBUTIONS
from tests.commands import supermask
from tests.subnetworks import of_architecture
from tests.test_draw import VECTORS

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)]+)\)", page.read_text("utf-8")):
        path, _, anchor = target.partition("#")
        if target.startswith("http"):
            continue
        file = page.parent / path if path else page
        assert file.is_file(), target
        if not anchor:
            continue
        titles = [line.lstrip("# ").lower() for line in file.read_text("utf-8").splitlines() if line.startswith("#")]
        assert anchor in {re.sub(r"[^a-z0-9 -]", "", title).replace(" ", "-") for title in titles}, target


def test_the_strategy_of_the_documentation_plugs_in(tmp_path: Path) -> None:
    page = (ROOT / "docs" / "strategies.md").read_text("utf-8")
    module, pyproject = re.findall(r"```(?:python|toml)\n(.*?)```", page, re.DOTALL)
    (points,) = parse(pyproject, "the example")["project"]["entry-points"].items()
    about = tmp_path / "my_package-1.0.dist-info"
    about.mkdir()
    (tmp_path / "my_package.py").write_text(module)
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: my-package\nVersion: 1.0\n")
    lines = "".join(f"{name} = {value}\n" for name, value in points[1].items())
    (about / "entry_points.txt").write_text(f"[{points[0]}]\n{lines}")
    args = ["search", "--strategy", "largest-weights", "--k", "0.3", "--epochs", "1", "--json"]
    done = supermask(*args, env={**os.environ, "PYTHONPATH": str(tmp_path)})
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["config"]["strategy"]["options"] == {"k": 0.3}


def test_the_format_page_has_the_test_vectors() -> None:
    page = (ROOT / "docs" / "format.md").read_text("utf-8")
    for distribution in DISTRIBUTIONS:
        assert f"| {distribution} | {VECTORS[distribution][0]} |" in page


def test_every_setting_that_the_documentation_names_exists() -> None:
    text = "".join(page.read_text("utf-8") for page in PAGES)
    named = set(re.findall(r"--set ([a-z_.]+=[a-z0-9_.]+)", text)) - {"key=value"}
    assert named
    for setting_ in named:
        resolve({"data": {"validation": 0.1}, "batch_size": 64}, setting(setting_))


def test_the_python_example_of_the_readme_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    (example,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text("utf-8"), re.DOTALL)
    names: dict[str, object] = {}
    exec(example, names)
    assert Path("my-artifact/config.json").is_file()


def test_the_python_example_of_the_export_page_runs() -> None:
    (example,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "export.md").read_text("utf-8"), re.DOTALL)
    export_onnx(of_architecture("fc", in_channels=1, image_size=8), "model.onnx")
    names: dict[str, Any] = {}
    exec(example, names)
    assert names["logits"].shape == (5, 10)
