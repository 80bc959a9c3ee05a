"""Draws the panels of the Grafana dashboard as one SVG, from the answers of a Prometheus."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any, NamedTuple

COLUMN, LINE, GAP, MARGIN = 60.0, 34.0, 8.0, 12.0
"""Pixels of a column (24 make the width) and of a unit of height of Grafana's grid."""
TITLE_PX, LEGEND_PX, AXIS_PX, CHAR_PX = 26.0, 18.0, 52.0, 6.2
INK, MUTED, GRID, CARD, PAGE = "#1f2933", "#66727f", "#e3e7ec", "#ffffff", "#f2f4f7"
COLORS = (
    "#2563c9", "#d98a00", "#0f8a7e", "#c8342b", "#7a4fc0",
    "#5d6b7a", "#b5527c", "#4d8f1f", "#1f9fcf", "#8a5a2b",
)  # fmt: skip
STATE_COLORS = {"green": "#2f8f46", "orange": "#d98a00", "red": "#c8342b"}
SI = ((1e6, "M"), (1e3, "k"))
TIMES = ((86_400.0, "d"), (3_600.0, "h"), (60.0, "min"), (1.0, "s"), (1e-3, "ms"), (1e-6, "µs"))

Points = list[tuple[float, float]]
"""Unix times and values."""


Panel = Mapping[str, Any]
"""A panel of the dashboard's JSON."""


class Curve(NamedTuple):
    """One series of a panel."""

    name: str
    points: Points


class Span(NamedTuple):
    """The time that the picture shows, in Unix seconds."""

    start_s: float
    end_s: float


def draw(title: str, panels: Sequence[Panel], curves: Sequence[Sequence[Curve]], span: Span) -> str:
    """Return the SVG of a dashboard with *panels*, whose data are *curves*, one entry for each panel."""
    bottom = max(panel["gridPos"]["y"] + panel["gridPos"]["h"] for panel in panels)
    width, top = 24 * COLUMN + 2 * MARGIN, 40.0
    height = top + bottom * LINE + MARGIN
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:g} {height:g}"'
        ' font-family="system-ui, sans-serif" font-size="12">',
        f'<rect width="100%" height="100%" fill="{PAGE}"/>',
        _text(MARGIN, 25, title, size=14, weight=600),
    ]
    for panel, drawn in zip(panels, curves, strict=True):
        grid = panel["gridPos"]
        x, y = MARGIN + grid["x"] * COLUMN, top + grid["y"] * LINE
        parts.append(f'<g transform="translate({x:g} {y:g})">')
        if panel["type"] == "row":
            parts.append(_text(2, 24, panel["title"], size=15, weight=600))
        else:
            size = (grid["w"] * COLUMN - GAP, grid["h"] * LINE - GAP)
            parts += [
                f'<rect width="{size[0]:g}" height="{size[1]:g}" rx="3" fill="{CARD}" stroke="{GRID}"/>',
                _text(10, 18, panel["title"], weight=600),
            ]
            parts += (
                _stat(panel, drawn, size) if panel["type"] == "stat" else _lines(panel, drawn, size, span)
            )
        parts.append("</g>")
    return "\n".join([*parts, "</svg>", ""])


def shown(value: float, unit: str, decimals: int | None = None) -> str:
    """Return *value* in a unit of Grafana, as on an axis."""
    if unit == "percentunit":
        return f"{value * 100:.{decimals if decimals is not None else 0 if value in (0, 1) else 1}f} %"
    if unit == "s":
        for size, name in TIMES:
            if abs(value) >= size:
                return f"{value / size:.3g} {name}"
        return "0 s"
    suffix = {"reqps": "/s", "ops": "/s"}.get(unit, "")
    for size, name in SI:
        if abs(value) >= size:
            return f"{value / size:.3g}{name}{suffix}"
    return f"{value:.3g}{suffix}"


def _text(x: float, y: float, text: str, size: float = 12, weight: int = 400, **attributes: str) -> str:
    fill = attributes.pop("fill", INK)
    more = "".join(f' {name.replace("_", "-")}="{value}"' for name, value in attributes.items())
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size:g}" font-weight="{weight}" fill="{fill}"{more}>'
        f"{escape(text)}</text>"
    )


def _stat(panel: Panel, curves: Sequence[Curve], size: tuple[float, float]) -> list[str]:
    """A panel with the last value."""
    defaults = panel["fieldConfig"]["defaults"]
    points = curves[0].points if curves else []
    if not points:
        return [_text(size[0] / 2, size[1] / 2 + 14, "no data", fill=MUTED, text_anchor="middle")]
    value = points[-1][1]
    steps = defaults["thresholds"]["steps"]
    color = [step["color"] for step in steps if step["value"] is None or value >= step["value"]][-1]
    text = shown(value, defaults["unit"], defaults.get("decimals"))
    style = {"fill": STATE_COLORS[color], "text_anchor": "middle"}
    return [_text(size[0] / 2, size[1] / 2 + 20, text, size=30, weight=600, **style)]


def _lines(panel: Panel, curves: Sequence[Curve], size: tuple[float, float], span: Span) -> list[str]:
    """A panel with lines over time."""
    defaults = panel["fieldConfig"]["defaults"]
    is_stacked = defaults["custom"]["stacking"]["mode"] == "normal"
    legend = _legend(curves, size)
    left, right, top = AXIS_PX, size[0] - 12, TITLE_PX + 4
    bottom = size[1] - 22 - LEGEND_PX * len(legend)
    tops = _stacked(curves) if is_stacked else [curve.points for curve in curves]
    highest = max((value for points in tops for _, value in points), default=0.0)
    scale = _round_up(highest) if highest > 0 else 1.0

    def at(point: tuple[float, float]) -> tuple[float, float]:
        x = left + (point[0] - span.start_s) / (span.end_s - span.start_s) * (right - left)
        return x, bottom - min(1.0, max(0.0, point[1] / scale)) * (bottom - top)

    parts = _axes(defaults["unit"], scale, (left, right, top, bottom), span)
    if not curves:
        middle = ((left + right) / 2, (top + bottom) / 2)
        parts.append(_text(*middle, "no data: nothing happened", fill=MUTED, text_anchor="middle"))
    floor: Points = []
    for number, points in enumerate(tops):
        color = COLORS[number % len(COLORS)]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in map(at, points))
        if is_stacked and points:
            base = floor or [(points[-1][0], 0.0), (points[0][0], 0.0)]
            edge = " ".join(f"{x:.1f},{y:.1f}" for x, y in map(at, base[::-1] if floor else base))
            parts.append(f'<polygon points="{path} {edge}" fill="{color}" fill-opacity="0.3"/>')
            floor = points
        parts.append(f'<polyline points="{path}" fill="none" stroke="{color}" stroke-width="1.4"/>')
    for row, entries in enumerate(legend):
        y = size[1] - 9 - LEGEND_PX * (len(legend) - 1 - row)
        for x, color, name in entries:
            parts.append(f'<rect x="{x:.0f}" y="{y - 6:.0f}" width="12" height="3" fill="{color}"/>')
            parts.append(_text(x + 16, y, name, size=11, fill=MUTED))
    return parts


def _axes(unit: str, scale: float, frame: tuple[float, float, float, float], span: Span) -> list[str]:
    left, right, top, bottom = frame
    parts = []
    for quarter in range(5):
        y = bottom - quarter / 4 * (bottom - top)
        parts.append(f'<path d="M{left:g} {y:.1f}H{right:g}" stroke="{GRID}"/>')
        label = shown(scale * quarter / 4, unit)
        parts.append(_text(left - 5, y + 4, label, size=10, fill=MUTED, text_anchor="end"))
    minutes = (span.end_s - span.start_s) / 60
    for minute in range(int(minutes) + 1):
        x = left + minute / minutes * (right - left)
        parts.append(_text(x, bottom + 13, f"{minute} min", size=10, fill=MUTED, text_anchor="middle"))
    return parts


def _legend(curves: Sequence[Curve], size: tuple[float, float]) -> list[list[tuple[float, str, str]]]:
    """Rows of position, color and name; at most two rows."""
    rows: list[list[tuple[float, str, str]]] = [[]]
    x = 12.0
    for number, curve in enumerate(curves):
        needed = 24 + CHAR_PX * len(curve.name)
        if x + needed > size[0] and rows[-1]:
            if len(rows) == 2:
                break
            rows.append([])
            x = 12.0
        rows[-1].append((x, COLORS[number % len(COLORS)], curve.name))
        x += needed + 8
    return rows


def _stacked(curves: Sequence[Curve]) -> list[Points]:
    """The upper edges of *curves* on top of one another; a missing value is 0."""
    times = sorted({at_s for curve in curves for at_s, _ in curve.points})
    heights = dict.fromkeys(times, 0.0)
    edges = []
    for curve in curves:
        values = dict(curve.points)
        heights = {at_s: height + values.get(at_s, 0.0) for at_s, height in heights.items()}
        edges.append(list(heights.items()))
    return edges


def _round_up(value: float) -> float:
    """The next round number from *value* on."""
    power = 10.0 ** len(str(int(value))) if value >= 1 else 1.0
    while power / 10 >= value:
        power /= 10
    return next(power * share for share in (0.12, 0.16, 0.2, 0.4, 0.6, 0.8, 1.0) if power * share >= value)
