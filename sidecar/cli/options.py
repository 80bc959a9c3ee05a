"""Options that several commands share, so that they mean the same everywhere."""

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
        help="The configuration file. Default: sidecar.yaml in this directory, or all defaults.",
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
        help="The API key; '-' reads it from standard input, which keeps it out of the shell's history.",
    ),
]
HeaderOption: TypeAlias = Annotated[
    list[str] | None,
    typer.Option("--header", "-H", metavar="NAME:VALUE", help="A header of the request; may be repeated."),
]
ScopeOption: TypeAlias = Annotated[
    str,
    typer.Option("--scope", metavar="SCOPE", help="The scope that the proxy states, or 'none'."),
]
JsonOption: TypeAlias = Annotated[bool, typer.Option("--json", help="Print JSON instead of text for people.")]
MethodArgument: TypeAlias = Annotated[str, typer.Argument(metavar="METHOD", help="Such as GET.")]
PathArgument: TypeAlias = Annotated[
    str, typer.Argument(metavar="PATH", help="The request's path, as the client wrote it.")
]

STDIN_KEY_CHARS_MAX = 4_096


def given_key(key: str | None) -> str | None:
    """
    The API key of `--key`: itself, or the first line of standard input for '-'.

    Raises:
        CommandError: standard input holds none.
    """
    if key != "-":
        return key
    line = sys.stdin.readline(STDIN_KEY_CHARS_MAX).strip()
    if not line:
        raise CommandError("--key - reads the API key from standard input, but there is none", EXIT_USAGE)
    return line


def given_headers(headers: list[str] | None) -> dict[str, str]:
    """
    The headers of `--header` by lower-case name; repeats are joined with ',', as Envoy does.

    Raises:
        CommandError: one has no ':'.
    """
    joined: dict[str, str] = {}
    for header in headers or ():
        name, colon, value = header.partition(":")
        name, value = name.strip().lower(), value.strip()
        if not colon or not name:
            raise CommandError(f"--header {header!r}: write 'name: value'", EXIT_USAGE)
        joined[name] = f"{joined[name]},{value}" if name in joined else value
    return joined


def add_key(headers: dict[str, str], key: str | None, name: str, scheme: str | None) -> None:
    """Put *key* into the header where the sidecar looks for it; a second one is kept, as a client would."""
    if key is not None:
        value = key if scheme is None else f"{scheme} {key}"
        headers[name] = f"{headers[name]},{value}" if name in headers else value
