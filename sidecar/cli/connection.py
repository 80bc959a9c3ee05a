"""Connects a command to the admin API: parses the server's address and the token."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

from sidecar.cli.exits import EXIT_USAGE, CommandError

if TYPE_CHECKING:
    from sidecar.admin_client.client import AdminClient

TOKEN_CHARS_MAX = 4_096


def connect(
    server: str, token: str | None, token_file: Path | None, ca: Path | None, timeout_s: float
) -> AdminClient:
    """
    Return a client of the admin API for the options of a command; sends nothing.

    Raises:
        CommandError: the server's address or the token cannot be used.
        AdminCallError: the CA file cannot be used.
    """
    from sidecar.admin_client.address import ServerAddressError, parse_server
    from sidecar.admin_client.client import AdminClient

    try:
        address = parse_server(server)
    except ServerAddressError as error:
        raise CommandError(str(error), EXIT_USAGE) from None
    return AdminClient(address, read_token(token, token_file), ca=ca, timeout_s=timeout_s)


class NoTokenError(CommandError):
    """No administrator's token was passed."""

    def __init__(self) -> None:
        """Say how to pass one."""
        super().__init__(
            "no administrator's token: set SIDECAR_ADMIN_TOKEN, or name a file with --token-file;"
            " 'sidecar admin bootstrap' creates the first one",
            EXIT_USAGE,
        )


def read_token(token: str | None, token_file: Path | None) -> str:
    """
    Return the administrator's token of `--token-file`, else of `--token` or its variable.

    Raises:
        CommandError: there is none, or it is malformed; the message never contains it.
    """
    from sidecar.domain.accounts import AuthenticationError, token_id_of

    source, value = _find_token(token, token_file)
    if not value:
        raise CommandError(f"{source} is empty; it must hold an administrator's token", EXIT_USAGE)
    try:
        token_id_of(value)
    except AuthenticationError:
        raise CommandError(
            f"{source} does not hold an administrator's token, which begins with 'sca_'; check that it was"
            " copied completely",
            EXIT_USAGE,
        ) from None
    return value


def _find_token(token: str | None, token_file: Path | None) -> tuple[str, str]:
    """The source of the token, and the text found there."""
    if token_file is not None:
        return f"the file {token_file}", _first_line(token_file)
    if token == "-":  # noqa: S105 - a dash, no password
        return "standard input", sys.stdin.readline(TOKEN_CHARS_MAX).strip()
    if not token:
        raise NoTokenError
    return "SIDECAR_ADMIN_TOKEN or --token", token.strip()


def _first_line(file: Path) -> str:
    try:
        with file.open(encoding="ascii", errors="replace") as lines:
            return lines.readline(TOKEN_CHARS_MAX).strip()
    except OSError as error:
        raise CommandError(f"the token file {file} cannot be read: {error.strerror}", EXIT_USAGE) from None
