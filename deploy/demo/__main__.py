"""`python -m deploy.demo [PROXY]`: exit code 0 = every answer was as expected, 1 = not."""

from __future__ import annotations

import sys

from rich.console import Console
from rich.markup import escape

from deploy.demo.programs import InterruptedByUserError, ProgramError, defer_interrupts
from deploy.demo.tour import PROXIES, UnexpectedAnswerError, run

EXIT_SIGNAL = 128
"""Plus the signal's number: the exit code of shells for a program that a signal ended."""


def main(arguments: list[str]) -> int:
    """Run the demo behind the proxy named in *arguments*, or behind Envoy."""
    proxy = arguments[0] if arguments else "envoy"
    if proxy not in PROXIES:
        print(f"unknown proxy {proxy!r}; known: {', '.join(PROXIES)}", file=sys.stderr)
        return 2
    defer_interrupts()
    console = Console(highlight=False)
    try:
        run(console, proxy)
    except (ProgramError, UnexpectedAnswerError) as error:
        console.print(f"\n[red]The demo failed:[/]\n{escape(str(error))}", soft_wrap=True)
        return 1
    except InterruptedByUserError as interruption:
        console.print("\nInterrupted; all programs are stopped.")
        return EXIT_SIGNAL + interruption.number
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
