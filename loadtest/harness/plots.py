"""The plots of reports, as SVG text for HTML pages."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from itertools import count, pairwise
from statistics import median
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from loadtest.driver.schedule import rate_at
from loadtest.harness.scenario import Scenario

INK, MUTED, GRID = "#1d2733", "#5d6b7a", "#e4e8ee"
BLUE, TEAL, AMBER, RED, VIOLET = "#2563c9", "#0f8a7e", "#d98a00", "#c8342b", "#7a4fc0"
SERIES = (BLUE, AMBER, TEAL, VIOLET, RED, MUTED)
STATUS_COLORS = {"200": TEAL, "429": AMBER, "403": VIOLET, "401": VIOLET, "503": RED, "unanswered": INK}
PERCENTILE_COLORS = {"p50": TEAL, "p90": BLUE, "p99": AMBER, "p99.9": RED}
_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.size": 10.5,
    "text.color": INK,
    "axes.edgecolor": GRID,
    "axes.labelcolor": MUTED,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "legend.frameon": False,
    "legend.fontsize": 10,
    "lines.linewidth": 1.8,
}
_numbers = count()

Curves = Mapping[str, Sequence[tuple[float, float]]]
"""Lines by name; each is points of x and y."""


def latency_over_time(result: Mapping[str, Any]) -> str:
    """Draw the latency percentiles of each second; the driver's limits and events are marked."""
    rows = [row for row in result["seconds"] if row["latency_us"]]
    figure, axes = _figure()
    for name, color in PERCENTILE_COLORS.items():
        points = [row["latency_us"][name] / 1e3 for row in rows]
        axes.plot([row["at_s"] + 0.5 for row in rows], points, color=color, label=name)
    _mark_events(axes, result)
    _latency_axis(axes)
    _time_axis(axes, result)
    return _svg(figure, axes)


def latency_distribution(results: Mapping[str, Mapping[str, Any]]) -> str:
    """Draw the latency of each percentile, by name of the result, on a scale that spreads the tail."""
    curves = {name: [(x, us / 1e3) for x, us in result["curve"]] for name, result in results.items()}
    figure, axes = _figure()
    _draw(axes, curves)
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter(FuncFormatter(lambda inverse, _: _percentile_label(inverse)))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xlabel("percentile of the calls")
    _latency_axis(axes)
    return _svg(figure, axes, has_legend=len(results) > 1)


def answers_over_time(result: Mapping[str, Any]) -> str:
    """Draw the answers of each second by status, and the rate that was due."""
    rows = result["seconds"]
    at_s = [row["at_s"] + 0.5 for row in rows]
    names = sorted({name for row in rows for name in row["statuses"]})
    figure, axes = _figure()
    layers = [[row["statuses"].get(name, 0) for row in rows] for name in names]
    axes.stackplot(
        at_s, layers, labels=names, colors=[STATUS_COLORS.get(name, MUTED) for name in names], alpha=0.8, lw=0
    )
    scenario = Scenario(**result["scenario"])
    if scenario.load.loop == "open":
        segments = scenario.load.segments
        due = [rate_at(segments, at) for at in at_s]
        axes.plot(at_s, due, color=INK, lw=1.2, ls=(0, (4, 2)), label="due")
    _mark_events(axes, result)
    axes.set_ylabel("answers per second")
    axes.set_ylim(bottom=0)
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    _time_axis(axes, result)
    return _svg(figure, axes)


def latency_over_load(curves: Curves, knee_per_s: float = 0.0, line: str = "-") -> str:
    """Draw latencies in milliseconds over rates per second, and mark the knee; *line* '' = points alone."""
    figure, axes = _figure()
    _draw(axes, curves, "o", line)
    if knee_per_s:
        axes.axvline(knee_per_s, color=MUTED, lw=1, ls=(0, (4, 2)))
        axes.annotate(
            f"knee {knee_per_s:,.0f}/s",
            (knee_per_s, 1),
            (-6, -4),
            ("data", "axes fraction"),
            "offset points",
            color=MUTED,
            ha="right",
            va="top",
        )
    _rate_axis(axes)
    _latency_axis(axes)
    return _svg(figure, axes)


def achieved_over_load(points: Sequence[tuple[float, float]]) -> str:
    """Draw the answers per second over the rate that was due."""
    figure, axes = _figure()
    top = max(due for due, _ in points)
    axes.plot([0, top], [0, top], color=MUTED, lw=1, ls=(0, (4, 2)), label="due")
    axes.plot(*zip(*points, strict=True), color=BLUE, marker="o", label="answered")
    _rate_axis(axes)
    axes.set_ylabel("answers per second")
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    return _svg(figure, axes)


def admitted_against_nominal(result: Mapping[str, Any]) -> str:
    """Draw what each integration asked for and was admitted, as shares of its nominal limit."""
    items = [
        (answered / nominal, admitted / nominal) for _, admitted, answered, nominal in result["admissions"]
    ]
    asked_for, got = zip(*items, strict=True)
    lowest, highest = min(*asked_for, 0.5) / 2, max(*asked_for, 1.0) * 2
    bottom = max(1e-5, min(*got, 0.5) / 2)
    figure, axes = _figure()
    axes.axhspan(1, 1e9, color=RED, alpha=0.07, lw=0)
    axes.axhline(1, color=RED, lw=1.2)
    axes.annotate("over the limit", (0.01, 1), (0, 5), ("axes fraction", "data"), "offset points", color=RED)
    axes.plot([bottom, 1], [bottom, 1], color=MUTED, lw=1, ls=(0, (4, 2)))
    axes.scatter(asked_for, got, s=16, color=BLUE, alpha=0.45, lw=0)
    for axis, scale in ((axes.xaxis, axes.set_xscale), (axes.yaxis, axes.set_yscale)):
        scale("log")
        axis.set_major_locator(LogLocator(10, subs=(1.0, 2.0, 5.0) if lowest > 0.01 else (1.0,)))
        axis.set_major_formatter(FuncFormatter(lambda share, _: f"{share * 100:g} %"))
        axis.set_minor_formatter(NullFormatter())
    axes.set_xlim(lowest, highest)
    axes.set_ylim(bottom, max(*got, 1.0) * 2)
    axes.set_xlabel("asked for, share of burst + rate × time")
    axes.set_ylabel("admitted")
    return _svg(figure, axes, has_legend=False)


def usage_over_time(result: Mapping[str, Any]) -> str:
    """Draw the processor time of each group of processes, and their memory below."""
    figure = Figure(figsize=(7.4, 3.6), layout="constrained")
    with mpl.rc_context(_STYLE):
        above, below = figure.subplots(2, 1, sharex=True)
    for (group, usage), color in zip(result["usage"].items(), SERIES, strict=False):
        samples = usage["samples"]
        spans = [
            (after["at_s"], after["cpu_s"] / (after["at_s"] - before["at_s"]) * 100)
            for before, after in pairwise(samples)
            if after["at_s"] - before["at_s"] > 0.2
        ]
        if spans:
            above.plot(*zip(*spans, strict=True), color=color, label=group)
        memory = [(sample["at_s"], sample["rss_bytes"] / 1e6) for sample in samples]
        below.plot(*zip(*memory, strict=True), color=color)
    above.set_ylabel("% of a core")
    below.set_ylabel("RSS, MB")
    for axes in (above, below):
        axes.set_ylim(bottom=0)
        axes.yaxis.set_major_locator(MaxNLocator(4))
    _time_axis(below, result)
    return _svg(figure, above)


def bars(values: Mapping[str, Sequence[float]]) -> str:
    """Draw the median of each named list of rounds as a bar, and every round as a point."""
    figure = Figure(figsize=(7.4, 0.8 + 0.42 * len(values)), layout="constrained")
    with mpl.rc_context(_STYLE):
        axes = figure.subplots()
    names = list(values)[::-1]
    for row, name in enumerate(names):
        rounds = values[name]
        middle = median(rounds)
        axes.barh(row, middle, color=BLUE if name.startswith("sidecar") else MUTED, height=0.6, alpha=0.85)
        axes.scatter(rounds, [row] * len(rounds), s=14, color=INK, zorder=3, alpha=0.6, lw=0)
        axes.annotate(short(middle), (max(rounds), row), (8, 0), textcoords="offset points", va="center")
    axes.set_yticks(range(len(names)), names, color=INK)
    axes.grid(axis="y", visible=False)
    axes.set_xlim(0, 1.15 * max(max(rounds) for rounds in values.values()))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    axes.xaxis.set_major_locator(MaxNLocator(6))
    return _svg(figure, axes, has_legend=False)


def short(value: float) -> str:
    """Return a figure for a reader: three digits or more."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}"


def _figure() -> tuple[Figure, Axes]:
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(7.4, 3.3), layout="constrained")
        return figure, figure.subplots()


def _draw(axes: Axes, curves: Curves, marker: str = "", line: str = "-") -> None:
    for (name, points), color in zip(curves.items(), SERIES * 3, strict=False):
        if points:
            color = PERCENTILE_COLORS.get(name, color)
            style: dict[str, Any] = {"color": color, "marker": marker, "markersize": 4, "ls": line or "none"}
            axes.plot(*zip(*points, strict=True), label=name, **style)


def _latency_axis(axes: Axes) -> None:
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(10, subs=(1.0, 2.0, 5.0)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda ms, _: _time_label(ms)))
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.set_ylabel("latency")


def _time_label(ms: float) -> str:
    if ms >= 1_000:
        return f"{ms / 1e3:g} s"
    return f"{ms:g} ms" if ms >= 1 else f"{ms * 1e3:g} µs"


def _rate_axis(axes: Axes) -> None:
    axes.set_xlabel("calls due per second")
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))


def _time_axis(axes: Axes, result: Mapping[str, Any]) -> None:
    axes.set_xlim(0, max(1, len(result["seconds"])))
    axes.set_xlabel("seconds since the start")


def _mark_events(axes: Axes, result: Mapping[str, Any]) -> None:
    scenario = Scenario(**result["scenario"])
    for start_s, end_s in result["outages"]:
        axes.axvspan(start_s, min(end_s, scenario.load.duration_s), color=RED, alpha=0.06, lw=0)
    for event in scenario.events:
        axes.axvline(event.at_s, color=INK, lw=1, ls=(0, (1, 2)))
        axes.annotate(
            event.do if event.times == 1 else f"{event.do}, {event.times:,} times",
            (event.at_s, 1),
            (3, -3),
            ("data", "axes fraction"),
            "offset points",
            fontsize=9,
            color=INK,
            rotation=90,
            va="top",
        )


def _percentile_label(inverse: float) -> str:
    share = 100 * (1 - 1 / inverse)
    return f"{share:.6f}".rstrip("0").rstrip(".") + " %"


def _svg(figure: Figure, axes: Axes, has_legend: bool = True) -> str:
    """Return the figure as SVG whose ids are unique in a page, scaled by the page."""
    buffer = io.StringIO()
    with mpl.rc_context({**_STYLE, "svg.hashsalt": f"plot-{next(_numbers)}"}):
        if has_legend:
            axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=8, handlelength=1.4, columnspacing=1.4)
        figure.savefig(buffer, format="svg", transparent=True)
    text = buffer.getvalue()
    text = re.sub(r"<metadata>.*?</metadata>", "", text[text.index("<svg") :], flags=re.DOTALL)
    return re.sub(
        r'(<svg[^>]*?) width="[^"]*"',
        r"\1",
        re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", text, count=1),
        count=1,
    )
