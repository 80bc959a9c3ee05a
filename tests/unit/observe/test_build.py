"""What the program says about its build is true of every module."""

from __future__ import annotations

import tomllib
from importlib import import_module
from pathlib import Path

from sidecar.observe.build import BUILD

PROJECT = Path(__file__).parents[3] / "pyproject.toml"


def test_build__is_that_of_every_module_of_the_hot_path() -> None:
    """In the compiled build all modules of `[tool.sidecar] compiled` are compiled, in the pure one none."""
    listed = tomllib.loads(PROJECT.read_text())["tool"]["sidecar"]["compiled"]
    names = [path.removesuffix(".py").replace("/", ".") for path in listed]
    files = [str(import_module(name).__file__) for name in names]
    assert {Path(file).suffix for file in files} == {".so" if BUILD == "compiled" else ".py"}
