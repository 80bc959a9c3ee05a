"""A terminal of a given width, and a command that runs in it: what its user sees."""

from __future__ import annotations

import fcntl
import io
import os
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import time

from tests.waiting import PATIENCE_S

COLUMNS = 80
ESCAPE = "\x1b"
_STYLE = re.compile(r"\x1b\[[0-9;?]*[a-zA-Z]")


class TerminalStream(io.StringIO):
    """Standard input, or output, at which somebody sits."""

    def isatty(self) -> bool:
        """Somebody does."""
        return True


class Terminal:
    """One command in a terminal of `COLUMNS`."""

    def __init__(self, *arguments: str, **environment: str) -> None:
        """Run `sidecar` with *arguments* in it."""
        self._keyboard, screen = os.openpty()
        fcntl.ioctl(screen, termios.TIOCSWINSZ, struct.pack("HHHH", 24, COLUMNS, 0, 0))
        kept = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
        self._program = subprocess.Popen(
            [sys.executable, "-m", "sidecar.cli", *arguments],
            stdin=screen,
            stdout=screen,
            stderr=screen,
            env={**kept, "TERM": "xterm", "LANG": "C.UTF-8", **environment},
            start_new_session=True,
            # Whoever runs the tests in the background may ignore Ctrl-C; a user's shell does not.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )
        os.close(screen)
        self.seen = ""

    def wait_for(self, text: str) -> None:
        """Read the screen until *text* is on it."""
        self._read(lambda: text in self.plain)
        assert text in self.plain, self.seen

    def type(self, text: str) -> None:
        """Type *text*, and Enter."""
        os.write(self._keyboard, text.encode() + b"\n")

    def interrupt(self) -> None:
        """Press Ctrl-C."""
        self._program.send_signal(signal.SIGINT)

    def end(self) -> int:
        """Read to the end; the exit code."""
        self._read(lambda: False)
        code = self._program.wait(PATIENCE_S)
        os.close(self._keyboard)
        return code

    @property
    def plain(self) -> str:
        """What is on the screen, without colours, each line to its last letter."""
        text = _STYLE.sub("", self.seen).replace("\r\n", "\n")
        return "\n".join(line.rstrip() for line in text.splitlines())

    def _read(self, is_enough: object) -> None:
        deadline_s = time.monotonic() + PATIENCE_S
        assert callable(is_enough)
        while not is_enough():
            left_s = deadline_s - time.monotonic()
            if left_s <= 0 or not select.select([self._keyboard], [], [], left_s)[0]:
                self._program.kill()
                raise AssertionError(f"not within {PATIENCE_S:g} s: {self.seen}")
            try:
                data = os.read(self._keyboard, 65_536)
            except OSError:  # Linux says EIO once the last writer has gone
                return
            if not data:
                return
            self.seen += data.decode()
