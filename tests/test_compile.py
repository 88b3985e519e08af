"""Searching what torch.compile makes of the network."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from tests.commands import NEEDS_COMPILER, kept, supermask


@NEEDS_COMPILER
@pytest.mark.parametrize("strategy", ["edge-popup", "dnw"])
def test_a_compiled_search_finds_the_subnetwork_of_a_plain_one(strategy: str, tmp_path: Path) -> None:
    words = ["search", "--strategy", strategy, "--epochs", "2", "--json"]
    plain = supermask(*words, "--run-dir", str(tmp_path / "plain"))
    compiled = supermask(*words, "--run-dir", str(tmp_path / "compiled"), "--compile")
    assert (plain.returncode, compiled.returncode) == (0, 0), compiled.stderr
    assert json.loads(compiled.stdout)["config"]["compile"] is True
    # This network has nothing that compiling would round in another order.
    assert kept(tmp_path / "compiled") == kept(tmp_path / "plain")


def test_without_a_compiler_one_line_says_so_before_anything_is_made(tmp_path: Path) -> None:
    run = tmp_path / "run"
    caches = {"TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "cache"), "CXX": "no-such-compiler"}
    done = supermask("search", "--compile", "--device", "cpu", "--run-dir", str(run), env=os.environ | caches)
    assert done.returncode == 2
    assert done.stderr.startswith("error: torch.compile does not work here")
    assert done.stderr.rstrip().endswith("leave out --compile")
    assert done.stderr.count("\n") == 1
    assert not run.exists()
