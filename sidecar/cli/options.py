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
    str,
    typer.Option("--scope", metavar="SCOPE", help="The scope that the proxy sends, or 'none'."),
]
JsonOption: TypeAlias = Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")]
MethodArgument: TypeAlias = Annotated[
    str, typer.Argument(metavar="METHOD", help="The request method, such as GET.")
]
PathArgument: TypeAlias = Annotated[
    str, typer.Argument(metavar="PATH", help="The request path, as the client sends it.")
]

STDIN_KEY_CHARS_MAX = 4_096


def given_key(key: str | None) -> str | None:
    """
    Return the API key of `--key`; '-' reads the first line of standard input.

    Raises:
        CommandError: standard input holds none.
    """
    if key != "-":
        return key
    line = sys.stdin.readline(STDIN_KEY_CHARS_MAX).strip()
    if not line:
        raise CommandError("--key - reads the API key from standard input, which is empty", EXIT_USAGE)
    return line


def given_headers(headers: list[str] | None) -> dict[str, str]:
    """
    Return the headers of `--header` by lower-case name; repeats are joined with ',', as Envoy does.

    Raises:
        CommandError: one has no ':'.
    """
    joined: dict[str, str] = {}
    for header in headers or ():
        name, colon, value = header.partition(":")
        name, value = name.strip().lower(), value.strip()
        if not colon or not name:
            raise CommandError(f"--header {header!r} has no ':'; write 'name: value'", EXIT_USAGE)
        joined[name] = f"{joined[name]},{value}" if name in joined else value
    return joined


def add_key(headers: dict[str, str], key: str | None, name: str, scheme: str | None) -> None:
    """Add *key* to the header where the sidecar looks for it; an existing value is kept."""
    if key is not None:
        value = key if scheme is None else f"{scheme} {key}"
        headers[name] = f"{headers[name]},{value}" if name in headers else value
