"""The comparison of interpreters: real sidecars, real loads, and a clear word when one does not run."""

from __future__ import annotations

import platform
import sys

import pytest

from loadtest.interpreters import main


def test_interpreters__each_has_a_line_with_its_figures(capsys: pytest.CaptureFixture[str]) -> None:
    """The first one is held against itself, the others against it."""
    assert main([sys.executable, sys.executable, "--calls", "2000", "--rounds", "1"]) == 0
    head, _, first, second = capsys.readouterr().out.splitlines()
    assert head.startswith("| interpreter | version | decisions |")
    for line in (first, second):
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        assert cells[:2] == [sys.executable, f"CPython {platform.python_version()}"]
        assert float(cells[2].removesuffix("/s").replace(",", "")) > 0
        assert float(cells[3].removesuffix(" µs")) > 0
    assert first.endswith("| 1.00 × |")


def test_interpreters__redis_and_refusals_are_measured_apart(capsys: pytest.CaptureFixture[str]) -> None:
    """With Redis its processor time has a column; an empty bucket refuses nearly every call."""
    options = ["--calls", "2000", "--rounds", "1", "--store", "redis", "--refused"]
    assert main([sys.executable, *options]) == 0
    cells = [cell.strip() for cell in capsys.readouterr().out.splitlines()[2].strip("|").split("|")]
    assert float(cells[3].removesuffix(" µs")) > 0
    assert float(cells[4].removesuffix(" µs")) > 0


def test_interpreters__one_that_does_not_run_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    """Nothing is measured then."""
    assert main(["/nowhere/python3", "--calls", "10", "--rounds", "1"]) == 1
    assert "/nowhere/python3 does not run" in capsys.readouterr().out
