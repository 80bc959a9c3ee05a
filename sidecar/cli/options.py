"""Options that several commands share."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, TypeAlias

import typer

from sidecar.cli.exits import EXIT_USAGE, CommandError

ConfigOption: TypeAlias = Annotated[
    Path | None,
    typer.Option(
        "--config",
        "-c",
        metavar="FILE",
        envvar="SIDECAR_CONFIG",
        help="The configuration file. Default: sidecar.yaml in this directory, else all defaults.",
    ),
]
KeyOption: TypeAlias = Annotated[
    str | None,
    typer.Option(
        "--key",
        "-k",
        metavar="KEY",
        envvar="SIDECAR_API_KEY",
        show_envvar=True,
        help="The API key; '-' reads it from standard input, to keep it out of the shell history.",
    ),
]
HeaderOption: TypeAlias = Annotated[
    list[str] | None,
    typer.Option("--header", "-H", metavar="NAME:VALUE", help="A header of the request; may be repeated."),
]
ScopeOption: TypeAlias = Annotated[
    str, typer.Option("--scope", metavar="SCOPE", help="The scope that the proxy sends, or 'none'.")
]
IpOption: TypeAlias = Annotated[
    str | None, typer.Option("--ip", metavar="ADDRESS", help="The client's address; excludes --peer.")
]
PeerOption: TypeAlias = Annotated[
    str,
    typer.Option(
        "--peer",
        metavar="ADDRESS",
        help="The address that connects to the proxy; 'client_ip' then determines the client's address.",
    ),
]
JsonOption: TypeAlias = Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")]
MethodArgument: TypeAlias = Annotated[
    str, typer.Argument(metavar="METHOD", help="The request method, such as GET.")
]
PathArgument: TypeAlias = Annotated[
    str, typer.Argument(metavar="PATH", help="The request path, as the client sends it.")
]

STDIN_KEY_CHARS_MAX = 4_096


def check_addresses(ip: str | None, peer: str) -> None:
    """
    Check that at most one of `--ip` and `--peer` is given.

    Raises:
        CommandError: both are given.
    """
    if ip is not None and peer:
        raise CommandError("--ip and --peer cannot be used together", EXIT_USAGE)


def request_headers(
    headers: list[str] | None, key: str | None, key_header: str, key_scheme: str | None = None
) -> dict[str, str]:
    """
    Return the headers of `--header` by lower-case name, with the API key of `--key` in *key_header*.

    Repeated headers are joined with ',', as Envoy does.

    Raises:
        CommandError: a header has no ':', or `--key -` found no key on standard input.
    """
    joined: dict[str, str] = {}

    def add(name: str, value: str) -> None:
        joined[name] = f"{joined[name]},{value}" if name in joined else value

    for header in headers or ():
        name, colon, value = header.partition(":")
        if not colon or not name.strip():
            raise CommandError(f"--header {header!r} has no ':'; write 'name: value'", EXIT_USAGE)
        add(name.strip().lower(), value.strip())
    api_key = _read_key(key)
    if api_key is not None:
        add(key_header, api_key if key_scheme is None else f"{key_scheme} {api_key}")
    return joined


def _read_key(key: str | None) -> str | None:
    if key != "-":
        return key
    line = sys.stdin.readline(STDIN_KEY_CHARS_MAX).strip()
    if not line:
        raise CommandError("--key - reads the API key from standard input, which is empty", EXIT_USAGE)
    return line
