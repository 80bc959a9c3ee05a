"""Reports as single HTML files that load nothing: results, comparisons, sweeps and peers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from loadtest.harness import plots
from loadtest.harness.scenario import Scenario

_CSS = """
:root { color-scheme: light dark; --page: #f5f7fa; --card: #fff; --ink: #1d2733; --muted: #5d6b7a; }
:root { --line: #e4e8ee; --good: #0f8a7e; --bad: #c8342b; --warn: #b06f00; }
@media (prefers-color-scheme: dark) {
  :root { --page: #11161c; --card: #1a2129; --ink: #e6ebf1; --muted: #9aa7b4; --line: #2b343f; }
  :root { --good: #3cc2b3; --bad: #f0736b; --warn: #e0a33e; }
  svg { filter: invert(0.9) hue-rotate(180deg); }
}
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--ink); }
body { font: 15px/1.5 system-ui, "Segoe UI", sans-serif; }
main { max-width: 1180px; margin: 0 auto; padding: 32px 24px 64px; }
h1 { font-size: 26px; line-height: 1.2; margin: 0 0 4px; }
h2 { font-size: 16px; margin: 0 0 8px; }
p { margin: 0 0 12px; color: var(--muted); max-width: 80ch; }
.verdict { border-left: 6px solid var(--good); background: var(--card); padding: 14px 18px; margin: 20px 0; }
.verdict.bad { border-color: var(--bad); } .verdict.warn { border-color: var(--warn); }
.verdict b { font-size: 17px; color: var(--good); }
.verdict.bad b { color: var(--bad); } .verdict.warn b { color: var(--warn); }
.verdict ul { margin: 6px 0 0; padding-left: 20px; color: var(--muted); }
.verdict code { display: block; white-space: pre-wrap; word-break: break-all; font-size: 12px; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(165px, 1fr)); gap: 12px; }
.tiles { margin: 20px 0; }
.tile { background: var(--card); border-radius: 6px; padding: 14px 16px; }
.tile span { display: block; font-size: 13px; color: var(--muted); }
.tile strong { font-size: 23px; font-weight: 600; font-variant-numeric: tabular-nums; white-space: nowrap; }
.plots { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(520px, 100%), 1fr)); gap: 16px; }
figure, section { background: var(--card); border-radius: 6px; padding: 16px 18px; margin: 0; min-width: 0; }
section { overflow-x: auto; }
.plots > :last-child:nth-child(odd) { grid-column: 1 / -1; }
main > section, section + .plots { margin-top: 16px; }
figcaption { color: var(--muted); font-size: 13px; }
svg { width: 100%; height: auto; display: block; }
svg text { font-family: system-ui, "Segoe UI", sans-serif !important; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { text-align: right; padding: 5px 12px 5px 0; border-bottom: 1px solid var(--line); }
th { color: var(--muted); font-weight: 500; font-size: 13px; }
th:first-child, td:first-child { text-align: left; }
td:not(:first-child) { white-space: nowrap; } .text td:last-child { white-space: normal; }
.text th, .text td { text-align: left; } .text td:first-child { color: var(--muted); white-space: nowrap; }
@media (max-width: 600px) {
  main { padding: 20px 12px 40px; }
  figure { overflow-x: auto; } svg { min-width: 560px; }
  .text td:first-child { white-space: normal; }
}
@media print { body { background: #fff; } main { padding: 0; } figure { break-inside: avoid; } }
"""

WAITED_SHARE_MAX = 0.05
"""A server that waited longer for a processor shared it with other programs."""

Rows = Sequence[Sequence[str]]


def run_page(result: Mapping[str, Any]) -> str:
    """Return the page of one run."""
    scenario = Scenario(**result["scenario"])
    figures = [
        _figure(
            "Answers",
            "Calls by the second in which they were due, and their statuses; dashed: the schedule.",
            plots.answers_over_time(result),
        )
    ]
    if is_measured(result):
        over_time = "Percentiles of the calls that were due in each second, counted from when they were due."
        figures += [
            _figure("Latency over time", over_time, plots.latency_over_time(result)),
            _figure("Latency by percentile", "After the warm-up.", plots.latency_distribution({"": result})),
        ]
        if scenario.load.shape in ("ramp", "step", "spike"):
            caption = "Each point is one second of the run."
            figures.append(
                _figure("Latency over load", caption, plots.latency_over_load(_by_rate(result), line=""))
            )
    if result["admissions"]:
        caption = "Each point is one integration; the dashed line is “everything that it asked for”."
        figures.append(_figure("Admitted against nominal", caption, plots.admitted_against_nominal(result)))
    if any(len(usage["samples"]) > 1 for usage in result["usage"].values()):
        figures.append(
            _figure("Processors and memory", "Sampled every second.", plots.usage_over_time(result))
        )
    by_kind, events = _table(*_answers(result)), event_rows(result)
    body = [
        f"<h1>{escape(scenario.name)}</h1><p>{escape(scenario.description)}</p>",
        _verdict(result),
        _busy_machine(result),
        _tiles(_facts(result)),
        f'<div class="plots">{"".join(figures)}{_section("Answers by kind", by_kind)}</div>',
        *([_section("What happened", _table(("figure", "value"), events))] if events else []),
        _section("How it was measured", _table(("setting", "value"), _settings(result))),
    ]
    return _page(f"Load test: {scenario.name}", body)


def is_measured(result: Mapping[str, Any]) -> bool:
    """Return whether the latencies are the server's: the driver was not the limit."""
    return bool(result["latency_us"]) and not result["driver"]["is_limit"]


def comparison_page(names: Sequence[str], results: Sequence[Mapping[str, Any]], rows: Rows) -> str:
    """Return the page that compares two runs; *rows* are those of the comparison's table."""
    measured = {name: result for name, result in zip(names, results, strict=True) if is_measured(result)}
    figures = []
    if measured:
        figures.append(
            _figure("Latency by percentile", "After the warm-up.", plots.latency_distribution(measured))
        )
    body = [
        f"<h1>{escape(names[0])} and {escape(names[1])}</h1>",
        *(_verdict(result, name) for name, result in zip(names, results, strict=True)),
        _section("Figures", _table(("figure", *names, "ratio"), rows)),
        f'<div class="plots">{"".join(figures)}</div>',
    ]
    return _page("Load tests compared", body)


def sweep_page(
    scenario: Scenario, results: Sequence[Mapping[str, Any]], knee_per_s: float, rows: Rows
) -> str:
    """Return the page of a sweep: *results* by rising rate, and the knee."""
    measured = [result for result in results if is_measured(result)]
    curves = {
        name: [(_due(result), result["latency_us"][name] / 1e3) for result in measured]
        for name in plots.PERCENTILE_COLORS
    }
    achieved = plots.achieved_over_load([(_due(result), result["calls_per_s"]) for result in results])
    figures = [_figure("Throughput over load", "Answers per second at each rate.", achieved)]
    settings = [row for row in _settings(results[0]) if row[0] not in ("load", "drivers")]
    if measured:
        latency = plots.latency_over_load(curves, knee_per_s)
        figures.insert(0, _figure("Latency over load", "Counted from when each call was due.", latency))
    body = [
        f"<h1>{escape(scenario.name)}, swept</h1><p>{escape(scenario.description)}</p>",
        _tiles([("Knee", f"{knee_per_s:,.0f}/s" if knee_per_s else "not found")]),
        f'<div class="plots">{"".join(figures)}</div>',
        _section("Rates", _table(("due per second", "answered", "p50", "p99", "p99.9", "answers"), rows)),
        _section("How it was measured", _table(("setting", "value"), settings)),
    ]
    return _page(f"Sweep: {scenario.name}", body)


def peers_page(
    machine: Mapping[str, Any], rounds: Mapping[str, Mapping[str, Sequence[float]]], rows: Rows, method: str
) -> str:
    """Return the page of a comparison with other servers; *rounds* has each figure's rounds by server."""
    figures = [
        _figure(name, "Median and every round.", plots.bars(values)) for name, values in rounds.items()
    ]
    body = [
        f"<h1>Beside other rate limiters</h1><p>{escape(method)}</p>",
        _section("Figures", _table(rows[0], rows[1:])),
        f'<div class="plots">{"".join(figures)}</div>',
        _section("Machine", _table(("", ""), _machine(machine))),
    ]
    return _page("Beside other rate limiters", body)


def milliseconds(us: float) -> str:
    """Return a latency for a reader; seconds from one second on."""
    if us >= 1_000_000:
        return f"{us / 1e6:,.2f} s"
    return f"{us / 1e3:,.2f} ms" if us < 10_000 else f"{us / 1e3:,.0f} ms"


def event_rows(result: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return rows about the suspensions and failovers of a run: names and values."""
    rows, failovers, found = [], result["failovers"], result["verdict"]["suspensions"]
    if failovers["failed_s"]:
        rows = [
            ("failovers", f"{failovers['count']:,}"),
            ("from the failure to the promotion", _seconds(failovers["replaced_after_s"])),
            ("from the failure to the last 503", _seconds(failovers["normal_after_s"])),
            ("admitted beyond burst + rate × time", f"{failovers['admitted_beyond_nominal']:,.0f}"),
        ]
    if found:
        rows += [
            ("suspensions", f"{found['made']:,}; {found['lacking_replicas']:,} without replicas"),
            ("errors of the admin API, repeated", f"{found['errors']:,}"),
            ("calls sent after a commit", f"{found['sent_after']:,}"),
            ("of these admitted", f"{found['admitted_after']:,}"),
            ("suspensions seen on every server", f"{found['seen_by_every_target']:,}"),
            ("from the call to the commit", _percentiles(found["commit_ms"])),
            ("from the commit to the last server's first denial", _percentiles(found["denial_ms"])),
        ]
    return rows


def _seconds(values: Sequence[float]) -> str:
    return ", ".join(f"{value:.2f}\u00a0s" for value in values)


def _percentiles(values_ms: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {value:,.1f} ms" for name, value in values_ms.items())


def _facts(result: Mapping[str, Any]) -> list[tuple[str, str]]:
    latency, facts = result["latency_us"], [("Calls per second", f"{result['calls_per_s']:,.0f}")]
    if is_measured(result):
        facts += [(f"Latency, {name}", milliseconds(latency[name])) for name in ("p50", "p99", "p99.9")]
        if len(result["answers"]) > 1 and result["valid_latency_us"]:
            facts.append(("p99 of valid requests", milliseconds(result["valid_latency_us"]["p99"])))
    ratio = result["admission_ratio"]
    if ratio:
        facts.append(("Most admitted, of nominal", f"{ratio['max']:.2%}"))
    for group, usage in result["usage"].items():
        facts.append((f"Processor per call, {group}", f"{usage['cpu_us_per_call']:.1f} µs"))
        facts.append((f"Memory, {group}", f"{usage['rss_mb_max']:.0f} MB"))
    return facts


def _answers(result: Mapping[str, Any]) -> tuple[Sequence[str], Rows]:
    answers = result["answers"]
    statuses = sorted({status for counts in answers.values() for status in counts})
    rows = [
        (kind.replace("_", " "), *(f"{counts.get(status, 0):,}" for status in statuses))
        for kind, counts in answers.items()
    ]
    return ("kind of request", *statuses), rows


def _settings(result: Mapping[str, Any]) -> Rows:
    scenario = Scenario(**result["scenario"])
    load, connections = scenario.load, scenario.connections
    rate = f"{load.rate_per_s:,.0f}/s" + (f" to {load.peak_per_s:,.0f}/s" if load.peak_per_s else "")
    driver, traffic, limits = result["driver"], scenario.traffic, scenario.limits
    streams = 1 if scenario.protocol in ("http", "forward_auth") else connections.streams
    arrivals = (
        f"{load.arrivals} arrivals, {load.shape}, {rate}" if load.loop == "open" else "as fast as answered"
    )
    return [
        (
            "server",
            scenario.target.address if scenario.target else f"own sidecar, store {scenario.sidecar.store}",
        ),
        ("protocol", scenario.protocol),
        ("load", f"{load.loop} loop: {arrivals}, {load.duration_s:g} s, warm-up {load.warm_up_s:g} s"),
        ("connections", f"{connections.connections} × {streams} calls in flight at most"),
        ("integrations", f"{traffic.integrations:,}, Zipf exponent {traffic.zipf:g}"),
        ("limits", f"{limits.rpm:,} per {limits.unit}, burst {scenario.burst:,}, {limits.algorithm}"),
        (
            "drivers",
            f"{driver['processes']} process(es), {driver['busy']:.0%} of a core,"
            f" {driver['cpu_us_per_call']:.1f} µs/call; {driver['why']};"
            f" {driver['reconnects']} reconnections",
        ),
        ("seed", str(scenario.seed)),
        ("started", result["started_at"]),
        *_machine(result["machine"]),
    ]


def _machine(machine: Mapping[str, Any]) -> list[tuple[str, str]]:
    return [
        ("machine", f"{machine['processor']}, Linux {machine['kernel']}"),
        ("commit", machine["commit"]),
        (
            "versions",
            f"Python {machine['python']}, "
            + ", ".join(f"{name} {number}" for name, number in machine["versions"].items()),
        ),
    ]


def _by_rate(result: Mapping[str, Any]) -> dict[str, list[tuple[float, float]]]:
    rows = [row for row in result["seconds"] if row["latency_us"]]
    return {
        name: sorted((sum(row["statuses"].values()), row["latency_us"][name] / 1e3) for row in rows)
        for name in ("p50", "p99")
    }


def _due(result: Mapping[str, Any]) -> float:
    return float(result["scenario"]["load"]["rate_per_s"])


def _verdict(result: Mapping[str, Any], name: str = "") -> str:
    verdict, before = result["verdict"], f"{escape(name)}: " if name else ""
    if verdict["is_right"]:
        items = "".join(f"<li>{escape(check)}</li>" for check in verdict["checks"])
        text = f'<div class="verdict"><b>{before}Every answer was right</b><ul>{items}</ul></div>'
    else:
        items = "".join(
            f"<li>{escape(fault['what'])}: {fault['count']:,}"
            + "".join(f"<code>{escape(example)}</code>" for example in fault["examples"][:3])
            + "</li>"
            for fault in verdict["faults"]
        )
        text = f'<div class="verdict bad"><b>{before}The run failed</b><ul>{items}</ul></div>'
    if result["driver"]["is_limit"]:
        text += (
            f'<div class="verdict warn"><b>{before}No latencies: the driver was the limit</b><ul><li>'
            f"{escape(result['driver']['why'])}. Use more driver processes, free cores or a lower rate."
            "</li></ul></div>"
        )
    return text


def _busy_machine(result: Mapping[str, Any]) -> str:
    """Return a warning if servers waited for processors that other programs used."""
    waiting = {name: usage["waited_share"] for name, usage in result["usage"].items()}
    found = [f"{name} {share:.0%}" for name, share in waiting.items() if share > WAITED_SHARE_MAX]
    if not found:
        return ""
    return (
        '<div class="verdict warn"><b>The machine was busy</b><ul><li>Share of the time in which a server'
        f" could have run but had no processor: {escape(', '.join(found))}. Latencies and rates are worse"
        " than the server's own.</li></ul></div>"
    )


def _tiles(facts: Sequence[tuple[str, str]]) -> str:
    tiles = "".join(
        f'<div class="tile"><span>{escape(name)}</span><strong>{escape(value)}</strong></div>'
        for name, value in facts
    )
    return f'<div class="tiles">{tiles}</div>'


def _figure(title: str, caption: str, svg: str) -> str:
    return f"<figure><h2>{escape(title)}</h2>{svg}<figcaption>{escape(caption)}</figcaption></figure>"


def _section(title: str, content: str) -> str:
    return f"<section><h2>{escape(title)}</h2>{content}</section>"


def _table(head: Sequence[str], rows: Rows) -> str:
    lines = "".join(f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in row)}</tr>" for row in rows)
    names = "".join(f"<th>{escape(name)}</th>" for name in head)
    kind = ' class="text"' if len(head) == 2 else ""
    return f"<table{kind}><thead><tr>{names}</tr></thead><tbody>{lines}</tbody></table>"


def _page(title: str, body: Sequence[str]) -> str:
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<style>{_CSS}</style></head><body><main>{''.join(body)}</main></body></html>"
    )
