"""Exit codes, and errors printed as sentences instead of tracebacks."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import typer

from sidecar.admin_client.failures import AdminCallError, Failure
from sidecar.cli.tables import counted
from sidecar.domain.api_keys import ApiKeyError
from sidecar.process.shutdown import StartError
from sidecar.sources.file_faults import FileFaultsError
from sidecar.transports.server import ListenError

EXIT_OK = 0
EXIT_REFUSED = 1
"""Something is invalid or refused: a configuration, a registry, a sidecar that does not answer."""
EXIT_USAGE = 2
"""Wrong arguments, or an address that cannot be listened on."""
EXIT_DENIED = 3
"""`decide` and `ask`: the request is denied."""
EXIT_CONFLICT = 4
"""A change conflicts with the current state: read it again (HTTP 409 and 412 of the admin API)."""
EXIT_UNCONFIRMED = 5
"""A change was made, but not every live sidecar confirmed it before `--wait` timed out."""


class CommandError(Exception):
    """Ends a command; the message is printed for the user."""

    def __init__(self, message: str, exit_code: int = EXIT_REFUSED) -> None:
        """Print *message* and exit with *exit_code*."""
        super().__init__(message)
        self.exit_code = exit_code


@contextmanager
def report_errors() -> Iterator[None]:
    """
    Print each error on one line and exit.

    Raises:
        Exit: an error was printed; carries the exit code.
    """
    try:
        yield
    except FileFaultsError as error:
        _print_error(f"{counted(error.total, 'mistake')}; nothing was started or changed", *error.lines())
        raise typer.Exit(EXIT_REFUSED) from None
    except ListenError as error:
        _print_error(str(error))
        raise typer.Exit(EXIT_USAGE) from None
    except StartError as error:
        _print_error(f"{error}; nothing is running")
        raise typer.Exit(EXIT_REFUSED) from None
    except CommandError as error:
        _print_error(str(error))
        raise typer.Exit(error.exit_code) from None
    except ApiKeyError as error:
        _print_error(str(error))
        raise typer.Exit(EXIT_USAGE) from None
    except AdminCallError as error:
        _print_error(*error.lines)
        raise typer.Exit(EXIT_CONFLICT if error.failure is Failure.CONFLICT else EXIT_REFUSED) from None


def _print_error(problem: str, *details: str) -> None:
    typer.echo(f"sidecar: {problem}", err=True)
    for detail in details:
        typer.echo(f"  {detail}", err=True)
