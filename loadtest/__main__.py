"""Drives servers by scenarios. Exit code 0 = every answer was right, 1 = an answer was wrong, 2 = no run."""

from __future__ import annotations

import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from deploy.demo.programs import ProgramError
from loadtest.bench.processes import BenchError
from loadtest.harness import pages, peers, results
from loadtest.harness import sweep as sweeps
from loadtest.harness.compare import compare as compared
from loadtest.harness.compare import differences
from loadtest.harness.drivers import DriverError
from loadtest.harness.run import RunError, drive
from loadtest.harness.scenario import FOLDER, Scenario, ScenarioError, load_scenario
from loadtest.harness.stage import staged
from loadtest.redis_servers import RedisServerError

EXIT_WRONG, EXIT_USAGE = 1, 2
RESULTS = Path("loadtest-results")
_ERRORS = (
    BenchError,
    DriverError,
    OSError,
    ProgramError,
    RedisServerError,
    RunError,
    ScenarioError,
    ValueError,
    subprocess.SubprocessError,
)

app = typer.Typer(add_completion=False, no_args_is_help=True, help=__doc__)
console = Console(highlight=False)

ScenarioArgument = Annotated[str, typer.Argument(help="Name of a built-in scenario, or a FILE.toml.")]
Scenarios = Annotated[
    list[str], typer.Argument(help="Names of built-in scenarios, or FILE.toml, run in turn.")
]
Target = Annotated[str, typer.Option(help="Address of a running server; see docs/develop/load-testing.md.")]
Keys = Annotated[str, typer.Option(help="File with an API key in each line, for --target.")]
Changes = Annotated[
    list[str], typer.Option("--set", metavar="KEY=VALUE", help="Override a key of the scenario.")
]
Out = Annotated[Path, typer.Option(help="Folder for the JSON result and the HTML report.")]


@app.command()
def run(
    scenarios: Scenarios,
    target: Target = "",
    keys: Keys = "",
    changes: Changes = [],  # noqa: B006
    out: Out = RESULTS,
) -> None:
    """Run scenarios, check every answer, and write a report of each."""
    with _errors():
        are_right = [
            _run_and_report(scenario, out)
            for scenario in [_load(name, target, keys, changes) for name in scenarios]
        ]
    raise typer.Exit(0 if all(are_right) else EXIT_WRONG)


def _run_and_report(scenario: Scenario, out: Path) -> bool:
    loaded = sweeps.at_peak_share(scenario, _run_once)
    result = _run_once(loaded)
    results.write(result, out / f"{loaded.name}.json")
    (out / f"{loaded.name}.html").write_text(pages.run_page(result))
    _print_result(result)
    console.print(f"report {out / loaded.name}.html, result {out / loaded.name}.json", soft_wrap=True)
    return bool(result["verdict"]["is_right"])


@app.command()
def compare(
    first: Annotated[Path, typer.Argument(help="JSON result of one run.")],
    second: Annotated[Path, typer.Argument(help="JSON result of another run.")],
    out: Out = RESULTS,
) -> None:
    """Compare two results."""
    with _errors():
        both = [results.read(path) for path in (first, second)]
        for difference in differences(*both):
            console.print(f"[yellow]{escape(difference)}")
        rows, names = compared(*both), (first.stem, second.stem) if first.stem != second.stem else ("A", "B")
        out.mkdir(parents=True, exist_ok=True)
        (out / "compare.html").write_text(pages.comparison_page(names, both, rows))
    _print_table(("figure", *names, "ratio"), rows)
    console.print(f"report {out / 'compare.html'}")
    raise typer.Exit(0 if all(result["verdict"]["is_right"] for result in both) else EXIT_WRONG)


@app.command()
def sweep(
    scenario: ScenarioArgument = "steady",
    target: Target = "",
    keys: Keys = "",
    changes: Changes = [],  # noqa: B006
    steps: Annotated[int, typer.Option(min=2, max=50, help="Number of rates.")] = 9,
    seconds: Annotated[float, typer.Option(min=1, help="Seconds at each rate.")] = 10.0,
    peak: Annotated[float, typer.Option(min=0, help="Peak rate per second; 0 = measure it first.")] = 0.0,
    p99_ms: Annotated[
        float, typer.Option(min=0, help="Highest p99 of a rate that is held; 0 = tenfold.")
    ] = 0.0,
    out: Out = RESULTS,
) -> None:
    """Run a scenario at rising rates and find the knee."""
    with _errors():
        loaded = _load(scenario, target, keys, changes)
        peak_per_s = peak or sweeps.peak_of(loaded, _run_once)
        console.print(f"peak {peak_per_s:,.0f}/s")
        found = list(sweeps.sweep(loaded, sweeps.rates_to(peak_per_s, steps), seconds, _run_once))
        knee_per_s, rows = sweeps.knee_of(found, p99_ms), sweeps.rows_of(found)
        results.write(
            {"format": results.FORMAT, "knee_per_s": knee_per_s, "results": found}, out / "sweep.json"
        )
        (out / "sweep.html").write_text(pages.sweep_page(loaded, found, knee_per_s, rows))
    _print_table(("due/s", "answered/s", "p50", "p99", "p99.9", "answers"), rows)
    console.print(f"knee {knee_per_s:,.0f}/s; report {out / 'sweep.html'}")
    raise typer.Exit(0 if all(result["verdict"]["is_right"] for result in found) else EXIT_WRONG)


@app.command("peers")
def beside_peers(
    scenario: Annotated[str, typer.Option(help="A scenario of protocol rls.")] = "peers",
    peer: Annotated[list[str], typer.Option(metavar="NAME=PATH", help="Program of a peer.")] = [],  # noqa: B006
    rounds: Annotated[int, typer.Option(min=1, max=1_000, help="Rounds, in turn.")] = 9,
    seconds: Annotated[float, typer.Option(min=0.5, help="Seconds of each measurement.")] = 3.0,
    changes: Changes = [],  # noqa: B006
    out: Out = RESULTS,
) -> None:
    """Drive envoyproxy/ratelimit and Limitador beside the sidecar, on the same cores, in rounds."""
    with _errors(), tempfile.TemporaryDirectory(prefix="loadtest-peers-") as folder:
        loaded = load_scenario(scenario, changes)
        if loaded.protocol != "rls":
            raise ScenarioError(f"scenario {scenario!r} has protocol {loaded.protocol!r}; peers need 'rls'")
        programs, missing = peers.find_programs(peer)
        for text in missing:
            console.print(f"[yellow]{escape(text)}")
        with console.status("starting servers") as status:
            measured, wrong = peers.measure(loaded, programs, Path(folder), rounds, seconds, status.update)
        rows, machine = peers.table(measured), results.machine()
        results.write({"machine": machine, "rounds": measured, "wrong": wrong}, out / "peers.json")
        method = (
            f"{rounds} rounds in turn, the order reversed each round, all servers up; a server on cores"
            " of its own, the driver and Redis on the others; the table has medians. A server that waited for"
            " a core shared it with other programs: then compare the times per call alone."
        )
        (out / "peers.html").write_text(pages.peers_page(machine, measured, rows, method))
    _print_table(rows[0], rows[1:])
    for text in wrong:
        console.print(f"[red]{escape(text)}")
    console.print(f"report {out / 'peers.html'}")
    raise typer.Exit(EXIT_WRONG if any(text.startswith("sidecar") for text in wrong) else 0)


@app.command("list")
def list_scenarios() -> None:
    """List the built-in scenarios."""
    rows = [(file.stem, load_scenario(file.stem).description) for file in sorted(FOLDER.glob("*.toml"))]
    _print_table(("scenario", "what it does"), rows)


def _load(name: str, target: str, keys: str, changes: Sequence[str]) -> Scenario:
    given = [f"target.{key}={value!r}" for key, value in (("address", target), ("keys", keys)) if value]
    return load_scenario(name, [*given, *changes])


def _run_once(scenario: Scenario) -> dict[str, Any]:
    with _progress(scenario) as progress, staged(scenario) as stage:
        return drive(scenario, stage, progress)


@contextmanager
def _progress(scenario: Scenario) -> Iterator[Callable[[float], None]]:
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.completed:.0f} s"))
    with Progress(*columns, TimeRemainingColumn(), console=console, transient=True) as bar:
        task = bar.add_task(f"{scenario.name}: starting", total=scenario.load.duration_s)
        name = f"{scenario.name}: {scenario.load.rate_per_s:,.0f}/s"
        name = name if scenario.load.loop == "open" else f"{scenario.name}: closed loop"
        yield lambda at_s: bar.update(task, completed=max(0.0, at_s), description=name)


@contextmanager
def _errors() -> Iterator[None]:
    """Print an expected error without a traceback."""
    try:
        yield
    except _ERRORS as error:
        console.print(f"[red]loadtest:[/] {escape(str(error))}", soft_wrap=True)
        raise typer.Exit(EXIT_USAGE) from None


def _print_result(result: dict[str, Any]) -> None:
    latency, driver = result["latency_us"], result["driver"]
    rows = [("calls", f"{result['calls']:,}"), ("calls per second", f"{result['calls_per_s']:,.0f}")]
    if pages.is_measured(result):
        shown = ", ".join(f"{name} {pages.milliseconds(us)}" for name, us in latency.items())
        rows.append(("latency", shown))
        if len(result["answers"]) > 1 and (valid := result["valid_latency_us"]):
            rows.append(
                (
                    "latency of valid",
                    f"p50 {pages.milliseconds(valid['p50'])}, p99 {pages.milliseconds(valid['p99'])}",
                )
            )
    else:
        rows.append(("latency", f"not measured: the driver was the limit ({driver['why']})"))
    for kind, statuses in result["answers"].items():
        rows.append((kind.replace("_", " "), ", ".join(f"{name}: {n:,}" for name, n in statuses.items())))
    for group, usage in result["usage"].items():
        used = f"{usage['cpu_us_per_call']:.1f} µs of processor a call, {usage['rss_mb_max']:.0f} MB,"
        rows.append((group, f"{used} waited {usage['waited_share']:.0%} of the time for a processor"))
    rows.append(("driver", f"{driver['cpu_us_per_call']:.1f} µs of processor a call; {driver['why']}"))
    rows += pages.event_rows(result)
    if result["admission_ratio"]:
        rows.append(("most admitted, of nominal", f"{result['admission_ratio']['max']:.2%}"))
    _print_table(("", ""), rows)
    for fault in result["verdict"]["faults"]:
        console.print(f"[red]{escape(fault['what'])}: {fault['count']:,}", soft_wrap=True)
        for example in fault["examples"][:2]:
            console.print(f"  {escape(example)}", soft_wrap=True)
    console.print("[green]every answer was right" if result["verdict"]["is_right"] else "[red]the run failed")


def _print_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    table = Table(box=SIMPLE_HEAD, pad_edge=False, show_header=any(head))
    for number, name in enumerate(head):
        table.add_column(name, justify="left" if not number or len(head) == 2 else "right")
    for row in rows:
        table.add_row(*map(escape, row))
    console.print(table)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))  # stops what was started
    app()
