"""Compares the figures of two results."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from loadtest.harness.pages import is_measured, milliseconds

Row = tuple[str, str, str, str]


def compare(first: Mapping[str, Any], second: Mapping[str, Any]) -> list[Row]:
    """Return rows: the figure, both values, and the second one as a multiple of the first one."""
    return list(_rows(first, second))


def differences(first: Mapping[str, Any], second: Mapping[str, Any]) -> list[str]:
    """Return what makes the two results hard to compare: other scenarios or machines."""
    found = []
    if first["machine"]["processor"] != second["machine"]["processor"]:
        found.append("the machines have different processors: do not compare their figures")
    mine, theirs = first["scenario"], second["scenario"]
    for section in ("protocol", "load", "connections", "traffic", "limits", "seed"):
        if mine[section] != theirs[section]:
            found.append(f"the scenarios differ in {section}")
    return found


def _rows(first: Mapping[str, Any], second: Mapping[str, Any]) -> Iterator[Row]:
    yield _row("calls per second", first["calls_per_s"], second["calls_per_s"], "{:,.0f}")
    for name in ("p50", "p90", "p99", "p99.9", "max"):
        if is_measured(first) and is_measured(second):
            mine, theirs = first["latency_us"][name], second["latency_us"][name]
            yield f"latency, {name}", milliseconds(mine), milliseconds(theirs), _ratio(mine, theirs)
    for group in first["usage"].keys() & second["usage"].keys():
        mine, theirs = first["usage"][group], second["usage"][group]
        for name, key in (("processor, µs per call", "cpu_us_per_call"), ("memory, MB", "rss_mb_max")):
            yield _row(f"{group}: {name}", mine[key], theirs[key], "{:,.1f}")
    if first["admission_ratio"] and second["admission_ratio"]:
        name = "most admitted, of nominal"
        yield _row(name, first["admission_ratio"]["max"], second["admission_ratio"]["max"], "{:.1%}")


def _row(name: str, first: float, second: float, form: str) -> Row:
    return name, form.format(first), form.format(second), _ratio(first, second)


def _ratio(first: float, second: float) -> str:
    return f"{second / first:.2f} ×" if first else "–"
