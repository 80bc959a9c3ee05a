"""`python -m deploy.demo`: exit code 0 when every answer was the promised one, 1 otherwise."""

from __future__ import annotations

import signal
import sys
from types import FrameType

from rich.console import Console
from rich.markup import escape

from deploy.demo.programs import ProgramError
from deploy.demo.tour import UnexpectedAnswerError, run

EXIT_INTERRUPTED = 130
EXIT_TERMINATED = 143


def _terminate(number: int, frame: FrameType | None) -> None:
    """Leave by an exception, so that everything is stopped on the way out."""
    raise SystemExit(EXIT_TERMINATED)


def main() -> int:
    """Run the demo."""
    signal.signal(signal.SIGTERM, _terminate)
    console = Console(highlight=False)
    try:
        run(console)
    except (ProgramError, UnexpectedAnswerError) as error:
        console.print(f"\n[red]The demo failed:[/]\n{escape(str(error))}", soft_wrap=True)
        return 1
    except KeyboardInterrupt:
        console.print("\nInterrupted; everything that was started is stopped.")
        return EXIT_INTERRUPTED
    return 0


if __name__ == "__main__":
    sys.exit(main())
