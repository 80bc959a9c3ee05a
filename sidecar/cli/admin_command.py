"""
Registers commands that call the admin API, with the options that all of them share.

`command` adds the shared options to a function, so each command declares only its own.
"""

from __future__ import annotations

import inspect
import secrets
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Annotated, Any, Self, TypeAlias, get_type_hints

import typer

from sidecar.cli.exits import EXIT_REFUSED, EXIT_UNCONFIRMED, EXIT_USAGE, CommandError, report_errors

if TYPE_CHECKING:
    from sidecar.admin_client.client import AdminClient, Answer, Query

SERVER = "http://127.0.0.1:9193"
WAIT_S = 10
WAIT_S_MAX = 60
TIMEOUT_S_MAX = 600
ADMINISTRATION = "Administration"
"""The heading in `sidecar --help` for commands that call the admin API."""
_CONNECTION = "Connection"
_CHANGE = "Change"

TokenOption: TypeAlias = Annotated[
    str | None,
    typer.Option(
        "--token",
        metavar="TOKEN",
        envvar="SIDECAR_ADMIN_TOKEN",
        rich_help_panel=_CONNECTION,
        help="Your token; '-' reads it from standard input. Other users can see arguments.",
    ),
]
TokenFileOption: TypeAlias = Annotated[
    Path | None,
    typer.Option(
        "--token-file",
        metavar="FILE",
        rich_help_panel=_CONNECTION,
        help="A file with your token as its first line; overrides --token.",
    ),
]


Document = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Connection:
    """The server and the credentials of a call; options of every command."""

    json: Annotated[bool, typer.Option("--json", help="Print the API's JSON instead of text.")] = False
    server: Annotated[
        str,
        typer.Option(
            "--server",
            metavar="URL",
            envvar="SIDECAR_SERVER",
            rich_help_panel=_CONNECTION,
            help="The admin listener: http://127.0.0.1:9193, https://host:port or unix:/path.",
        ),
    ] = SERVER
    token: TokenOption = None
    token_file: TokenFileOption = None
    ca: Annotated[
        Path | None,
        typer.Option(
            "--ca",
            metavar="FILE",
            rich_help_panel=_CONNECTION,
            help="PEM file of the CA to trust, for https. Default: the machine's.",
        ),
    ] = None
    timeout: Annotated[
        str,
        typer.Option(
            "--timeout",
            metavar="DURATION",
            rich_help_panel=_CONNECTION,
            help="Timeout of one call, such as 30s or 2m; at most 10m.",
        ),
    ] = "10s"


@dataclass(frozen=True, kw_only=True)
class Change:
    """The options of every change."""

    reason: Annotated[
        str, typer.Option("--reason", metavar="TEXT", help="The reason, for the audit log.")
    ] = ""
    idempotency_key: Annotated[
        str,
        typer.Option(
            "--idempotency-key",
            metavar="KEY",
            rich_help_panel=_CHANGE,
            help="Retry a change safely: one key makes one change. Default: a new key.",
        ),
    ] = ""


@dataclass(frozen=True, kw_only=True)
class IntegrationChange(Change):
    """The options of every change of an integration."""

    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run", rich_help_panel=_CHANGE, help="Show what would happen, and change nothing."
        ),
    ] = False
    expect: Annotated[
        int | None,
        typer.Option(
            "--expect",
            metavar="GENERATION",
            min=0,
            rich_help_panel=_CHANGE,
            help="Change it only if its generation is still this one.",
        ),
    ] = None
    wait: Annotated[
        bool,
        typer.Option(
            "--wait",
            rich_help_panel=_CHANGE,
            help=f"Wait up to {WAIT_S} seconds for every live sidecar to confirm.",
        ),
    ] = False
    wait_for: Annotated[
        str,
        typer.Option(
            "--wait-for",
            metavar="DURATION",
            rich_help_panel=_CHANGE,
            help="Wait at most this long for every live sidecar to confirm, such as 30s; at most 1m.",
        ),
    ] = ""

    @property
    def waiting_s(self) -> int | None:
        """
        Seconds to wait for confirmations; None = do not wait.

        Raises:
            CommandError: --wait-for is not a duration, or out of range.
        """
        from sidecar.cli.times import duration_within

        if self.wait_for:
            return duration_within("--wait-for", self.wait_for, WAIT_S_MAX)
        return WAIT_S if self.wait else None


@dataclass(frozen=True, kw_only=True)
class Confirmed:
    """The option of commands that ask for confirmation."""

    yes: Annotated[
        bool,
        typer.Option(
            "--yes",
            "-y",
            help="Do not ask for confirmation; for 'suspend', only needed if nobody could reactivate.",
        ),
    ] = False


class Invocation:
    """One run of a command: its connection and its shared options."""

    def __init__(self, connection: Connection, change: Change | None, confirmed: Confirmed | None) -> None:
        """Store the options; the first call opens the connection."""
        self.is_json = connection.json
        self._connection = connection
        self._change = change
        self._is_confirmed = confirmed is not None and confirmed.yes
        self._key = (change.idempotency_key if change is not None else "") or secrets.token_hex(16)
        self._client: AdminClient | None = None

    def __enter__(self) -> Self:
        """Return itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the connection."""
        if self._client is not None:
            self._client.__exit__(kind, error, trace)

    @property
    def client(self) -> AdminClient:
        """
        The connection.

        Raises:
            CommandError: the server's address or the token cannot be used.
            AdminCallError: the CA file cannot be used.
        """
        if self._client is None:
            from sidecar.cli.connection import connect
            from sidecar.cli.times import duration_within

            options = self._connection
            timeout_s = duration_within("--timeout", options.timeout, TIMEOUT_S_MAX)
            self._client = connect(options.server, options.token, options.token_file, options.ca, timeout_s)
        return self._client

    @property
    def is_confirmed(self) -> bool:
        """Whether `--yes` was given."""
        return self._is_confirmed

    @property
    def is_dry_run(self) -> bool:
        """Whether `--dry-run` was given."""
        return isinstance(self._change, IntegrationChange) and self._change.dry_run

    @property
    def integration_change(self) -> IntegrationChange:
        """The options of a change of an integration."""
        assert isinstance(self._change, IntegrationChange)  # the command was registered with these options
        return self._change

    def preview(self, method: str, *segments: str, body: Mapping[str, Any]) -> Answer:
        """
        Return the answer of a dry run, even without `--dry-run`.

        Raises:
            AdminCallError: the change would be refused, or there was no answer.
        """
        from sidecar.admin_client.client import path_to

        return self.client.change(
            method,
            path_to(*segments),
            body,
            query={"dry_run": True},
            idempotency_key=secrets.token_hex(16),
            expected_generation=self.integration_change.expect,
        )

    def get(self, *segments: str, query: Query | None = None, extra_s: float = 0.0) -> dict[str, Any]:
        """Read what the path of *segments* names; see `AdminClient.get`."""
        from sidecar.admin_client.client import path_to

        return self.client.get(path_to(*segments), query, extra_s=extra_s)

    def change(
        self,
        method: str,
        *segments: str,
        body: Mapping[str, Any] | None = None,
        in_query: bool = False,
        query: Query | None = None,
        extra_s: float = 0.0,
    ) -> Answer:
        """
        Make the change that the path of *segments* names, with the options of this run.

        *query* are further parameters; *extra_s* is added to the deadline.

        Raises:
            AdminCallError: see `AdminClient.change`; says how to repeat a change that may have happened.
        """
        from sidecar.admin_client.client import path_to
        from sidecar.admin_client.failures import AdminCallError, Failure
        from sidecar.domain.durations import format_duration

        options = self._change or Change()
        query = query or {}
        wait_s: int | None = None
        if isinstance(options, IntegrationChange):
            wait_s = None if options.dry_run else options.waiting_s
            wait = format_duration(wait_s) if wait_s else None
            query = {**query, "dry_run": options.dry_run or None, "wait": wait}
        reason = {"reason": options.reason} if options.reason else {}
        try:
            return self.client.change(
                method,
                path_to(*segments),
                None if in_query else {**(body or {}), **reason},
                query={**query, **reason} if in_query else query,
                idempotency_key=self._key,
                expected_generation=options.expect if isinstance(options, IntegrationChange) else None,
                extra_s=extra_s + (wait_s or 0),
            )
        except AdminCallError as error:
            if not error.may_have_happened:
                raise
            lines, document = [*error.lines, self._how_to_repeat], error.document
            raise AdminCallError(error.failure, lines, may_have_happened=True, document=document) from None
        except KeyboardInterrupt:
            lines = ["interrupted before the server answered", self._how_to_repeat]
            raise AdminCallError(Failure.UNAVAILABLE, lines, may_have_happened=True) from None

    @property
    def _how_to_repeat(self) -> str:
        return (
            f"the change may have been made: check, or repeat it with --idempotency-key {self._key},"
            " which never makes it twice"
        )

    def confirm(self, question: str, *, is_urgent: bool = False) -> None:
        """
        Ask for confirmation, unless `--yes` was given.

        Without a terminal the command needs `--yes`, unless it *is_urgent*: a suspension from a script must
        not fail in an incident because an option is missing.

        Raises:
            CommandError: the answer was no, or this is not a terminal.
        """
        if not (self._is_confirmed or self.is_dry_run or (is_urgent and not _has_terminal())):
            ask_first(question)

    def show(self, document: Document, print_text: Callable[[Document], None]) -> None:
        """Print *document* of the API as JSON, or by *print_text*."""
        self.print_json(document) if self.is_json else print_text(document)

    def print_json(self, data: object) -> None:
        """Print an answer of the API as JSON."""
        import json

        typer.echo(json.dumps(data, indent=2))

    def print_change(self, answer: Answer) -> None:
        """
        Print what a change did.

        Raises:
            Exit: not every sidecar confirmed in time.
        """
        from sidecar.cli.output import print_change

        if self.is_json:
            self.print_json(answer.data)
        else:
            print_change(answer)
        _exit_if_unconfirmed(answer)

    def print_secret(self, answer: Answer, field: str, what: str) -> None:
        """
        Print a new secret alone on standard output, and everything else on standard error.

        Raises:
            Exit: there is no secret to show, or not every sidecar confirmed in time.
        """
        from sidecar.cli.output import print_change, print_lost_secret

        secret = answer.data.get(field)
        if self.is_json:
            self.print_json(answer.data)
        else:
            print_change(answer, err=True)
            if secret:
                typer.echo(f"{what}, shown only once:", err=True)
                _write_secret(secret, what)
        if not secret and not self.is_dry_run:
            print_lost_secret(what)
            raise typer.Exit(EXIT_REFUSED)
        _exit_if_unconfirmed(answer)


def _exit_if_unconfirmed(answer: Answer) -> None:
    confirmation = answer.data.get("confirmation")
    if confirmation is not None and not confirmation["is_complete"]:
        raise typer.Exit(EXIT_UNCONFIRMED)


def ask_first(question: str) -> None:
    """
    Ask the user to confirm, on the terminal.

    Raises:
        CommandError: the answer was no, or this is not a terminal.
    """
    if not _has_terminal():
        raise CommandError(
            f"not a terminal, so nothing was changed: {question} Pass --yes to confirm", EXIT_USAGE
        )
    if not typer.confirm(question, err=True):
        raise CommandError("nothing was changed")


def _has_terminal() -> bool:
    return sys.stdin.isatty() and sys.stderr.isatty()


def command(
    app: typer.Typer, name: str, *kinds: type, panel: str | None = None
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """
    Register a function as the command *name*; its first argument is an `Invocation`.

    *kinds* are the shared options besides those of `Connection`: `Change` or `IntegrationChange`,
    `Confirmed`, and others. A parameter of the function replaces a shared one of the same name, and a
    parameter whose type is a kind gets its options.
    """
    shared = (*kinds, Connection)

    def register(function: Callable[..., None]) -> Callable[..., None]:
        own = list(inspect.signature(function, eval_str=True).parameters.values())[1:]
        given = {parameter.name: parameter.annotation for parameter in own if parameter.annotation in kinds}
        own = [parameter for parameter in own if parameter.name not in given]
        names = {parameter.name for parameter in own}
        added = {
            parameter.name: parameter
            for kind in shared
            for parameter in _parameters(kind)
            if parameter.name not in names
        }

        def run(**values: Any) -> None:
            options = [_options(kind, values) for kind in shared]
            with report_errors(), _report_write_errors(), _invocation(options) as invocation:
                by_kind = {name: options[shared.index(kind)] for name, kind in given.items()}
                function(invocation, **by_kind, **{name: values[name] for name in names})

        keyword = inspect.Parameter.KEYWORD_ONLY
        parameters = [parameter.replace(kind=keyword) for parameter in (*own, *added.values())]
        run.__doc__, run.__name__ = function.__doc__, function.__name__
        run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
        run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        app.command(name, rich_help_panel=panel)(run)
        return function

    return register


@contextmanager
def _report_write_errors() -> Iterator[None]:
    """
    Report that the output cannot be written; a closed pipe, as of `head`, is no error.

    Raises:
        CommandError: standard output is closed, or its disk is full.
    """
    if sys.stdout is None:
        raise CommandError("standard output is closed; nothing was changed", EXIT_USAGE)
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        raise CommandError(f"the output cannot be written: {error.strerror or error}") from None


def _write_secret(secret: str, what: str) -> None:
    try:
        typer.echo(secret)
    except OSError as error:
        raise CommandError(
            f"{what} was created, but standard output cannot be written ({error.strerror}), so it is lost:"
            " revoke it and create another one"
        ) from None


def _parameters(kind: type) -> list[inspect.Parameter]:
    """The fields of an options class, as parameters of a command."""
    hints = get_type_hints(kind, include_extras=True)
    return [
        inspect.Parameter(
            field.name,
            inspect.Parameter.KEYWORD_ONLY,
            default=inspect.Parameter.empty if field.default is MISSING else field.default,
            annotation=hints[field.name],
        )
        for field in fields(kind)
    ]


def _options(kind: type, values: Mapping[str, Any]) -> Any:
    return kind(**{field.name: values[field.name] for field in fields(kind) if field.name in values})


def _invocation(options: list[Any]) -> Invocation:
    def find(kind: type) -> Any:
        return next((option for option in options if isinstance(option, kind)), None)

    return Invocation(find(Connection), find(Change), find(Confirmed))
