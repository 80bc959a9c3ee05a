"""`sidecar verify-limits`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, TypeAlias

import typer

from sidecar.cli.exits import EXIT_OK, EXIT_REFUSED, EXIT_USAGE, CommandError, report_errors
from sidecar.cli.options import JsonOption

if TYPE_CHECKING:
    from sidecar.verify.run import Outcome, VerificationPlan

DURATION_S_MAX = 3_600

StoreOption: TypeAlias = Annotated[
    str,
    typer.Option(
        "--store",
        metavar="URL",
        envvar="SIDECAR_STORE",
        show_envvar=True,
        help="The store of the buckets; this run uses its own key prefix.",
    ),
]
SidecarsOption: TypeAlias = Annotated[
    int, typer.Option("--sidecars", min=1, max=64, help="Number of sidecars to start.")
]
BucketsOption: TypeAlias = Annotated[
    int, typer.Option("--buckets", min=1, max=1_000, help="Number of integrations to create.")
]
LimitOption: TypeAlias = Annotated[
    int, typer.Option("--limit", min=1, max=10_000, help="Requests per minute of each integration.")
]
BurstOption: TypeAlias = Annotated[
    int, typer.Option("--burst", min=1, max=1_000_000, help="Burst of each integration.")
]
DurationOption: TypeAlias = Annotated[
    str, typer.Option("--duration", metavar="DURATION", help="How long to send requests, 1s to 1h.")
]
KillOption: TypeAlias = Annotated[
    str,
    typer.Option(
        "--kill-worker-every",
        metavar="DURATION",
        help="Kill one sidecar after another with SIGKILL at this interval, 1s to 1h, and start it again.",
    ),
]
TargetOption: TypeAlias = Annotated[
    list[str] | None,
    typer.Option(
        "--target",
        metavar="ADDRESS",
        help="Use this running sidecar, 'host:port' or 'unix:/path'; may be repeated.",
    ),
]
KeysOption: TypeAlias = Annotated[
    list[str] | None,
    typer.Option(
        "--key",
        metavar="KEY",
        envvar="SIDECAR_API_KEY",
        show_envvar=True,
        help="With --target: the API key of an integration with this limit and burst; may be repeated.",
    ),
]
ConnectionsOption: TypeAlias = Annotated[
    int, typer.Option("--connections", min=1, max=64, help="Connections to each sidecar.")
]
InFlightOption: TypeAlias = Annotated[
    int, typer.Option("--in-flight", min=1, max=100, help="Concurrent requests on each connection.")
]


def verify_limits(
    store: StoreOption = "",
    sidecars: SidecarsOption = 4,
    buckets: BucketsOption = 4,
    limit: LimitOption = 6_000,
    burst: BurstOption = 100,
    duration: DurationOption = "10s",
    kill_worker_every: KillOption = "",
    target: TargetOption = None,
    key: KeysOption = None,
    connections: ConnectionsOption = 2,
    in_flight: InFlightOption = 16,
    json: JsonOption = False,
) -> None:
    """
    Verify that sidecars together enforce the limits.

    Starts real sidecars on the store and sends far more requests than the limits allow. Each bucket must
    admit at most B + L·T/60 requests in T seconds on the store's clock, and at least 99 % of the tokens
    that it received. Exits with 0 if every bucket does, with 1 if a bucket does not or was not measured.
    """
    with report_errors():
        from sidecar.cli.times import duration_within
        from sidecar.verify.run import Load, VerificationPlan

        duration_s = duration_within("--duration", duration, DURATION_S_MAX)
        kill_every_s = (
            duration_within("--kill-worker-every", kill_worker_every, DURATION_S_MAX)
            if kill_worker_every
            else None
        )
        plan = VerificationPlan(
            store=store,
            load=Load(float(duration_s), connections, in_flight),
            limit_rpm=limit,
            burst=burst,
            sidecars=sidecars,
            buckets=buckets,
            kill_every_s=kill_every_s,
            targets=tuple(target or ()),
            api_keys=tuple(key or ()) if target else (),
        )
        _check(plan)
        outcome = _carry_out(plan)
        _print(outcome, json)
    raise typer.Exit(EXIT_OK if outcome.run.is_fulfilled else EXIT_REFUSED)


def _check(plan: VerificationPlan) -> None:
    """Reject options that contradict each other, before anything starts."""
    from sidecar.process.settings import EMBEDDED_STORE
    from sidecar.stores.redis.urls import StoreUrlError, parse_store_url

    if plan.targets and not plan.api_keys:
        raise CommandError("--target needs API keys: add --key", EXIT_USAGE)
    if plan.targets and plan.kill_every_s is not None:
        raise CommandError(
            "--kill-worker-every works only on sidecars that this command starts: leave --target out",
            EXIT_USAGE,
        )
    if not plan.targets and not plan.store:
        raise CommandError(
            "no store: pass --store URL, such as redis://127.0.0.1:6379, or name running"
            " sidecars with --target and --key",
            EXIT_USAGE,
        )
    if plan.store not in ("", EMBEDDED_STORE):
        try:
            parse_store_url(plan.store).verify()
        except StoreUrlError as error:
            raise CommandError(str(error), EXIT_USAGE) from None


def _carry_out(plan: VerificationPlan) -> Outcome:
    """Run *plan* on an event loop; Ctrl-C and SIGTERM clean up, too."""
    import asyncio
    import signal

    import uvloop

    from sidecar.stores.redis.urls import StoreUrlError
    from sidecar.stores.registry.protocol import RegistryError
    from sidecar.verify.run import prove
    from sidecar.verify.sidecars import SidecarsError
    from sidecar.verify.subjects import SubjectError

    async def proven() -> Outcome:
        task = asyncio.current_task()
        assert task is not None
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
        return await prove(plan)

    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            return runner.run(proven())
    except asyncio.CancelledError:
        raise CommandError("interrupted; there is no result") from None
    except OSError as error:
        raise CommandError(f"a sidecar does not answer: {str(error) or 'timeout'}") from None
    except (SidecarsError, SubjectError, StoreUrlError, RegistryError) as error:
        raise CommandError(str(error)) from None


def _print(outcome: Outcome, as_json: bool) -> None:
    import json

    from rich.console import Console

    from sidecar.verify import report

    if as_json:
        typer.echo(json.dumps(report.as_json(outcome), indent=2))
    else:
        Console().print(report.as_table(outcome))
