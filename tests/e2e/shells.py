"""Shells of several people beside one sidecar: commands go in one by one, what their user sees comes out."""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import select
import struct
import subprocess
import sys
import termios
import time
from pathlib import Path
from typing import NamedTuple

from tests.waiting import PATIENCE_S

COLUMNS = 110
_STYLE = re.compile(r"\x1b\[[0-9;?]*[a-zA-Z]")


class Ran(NamedTuple):
    """What one command printed, and its exit code."""

    printed: str
    code: int


class Shell:
    """
    A bash of one person; variables last from one command to the next.

    Its commands write to a terminal and read from nowhere, as when somebody pastes them.
    """

    def __init__(self, folder: Path, **environment: str) -> None:
        """Start it in *folder*, with `sidecar` on its path."""
        self._screen, screen = os.openpty()
        fcntl.ioctl(screen, termios.TIOCSWINSZ, struct.pack("HHHH", 50, COLUMNS, 0, 0))
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        self._bash = subprocess.Popen(
            ["bash", "--norc", "--noprofile"],
            stdin=subprocess.PIPE,
            stdout=screen,
            stderr=screen,
            cwd=folder,
            env={
                "PATH": path,
                "HOME": str(folder),
                "TERM": "xterm",
                "LANG": "C.UTF-8",
                "NO_COLOR": "1",
                **environment,
            },
            start_new_session=True,
        )
        os.close(screen)
        self._count = 0

    def run(self, command: str) -> Ran:
        """Run *command* to its end."""
        assert self._bash.stdin is not None
        self._count += 1
        mark = f"--ran-{self._count}--"
        line = f"{{ {command}\n}} < /dev/null; printf '\\n{mark}%d\\n' $?\n"
        self._bash.stdin.write(line.encode())
        self._bash.stdin.flush()
        printed = self._read_to(mark)
        text, _, code = printed.rpartition(mark)
        return Ran(_STYLE.sub("", text).strip("\n"), int(code))

    def close(self) -> None:
        """End it."""
        assert self._bash.stdin is not None
        with contextlib.suppress(OSError):
            self._bash.stdin.close()
        self._bash.wait(PATIENCE_S)
        os.close(self._screen)

    def _read_to(self, mark: str) -> str:
        """Read the screen to the line that begins with *mark*."""
        deadline_s = time.monotonic() + PATIENCE_S
        seen = ""
        while not (mark in seen and seen.rpartition(mark)[2].endswith("\n")):
            left_s = deadline_s - time.monotonic()
            if left_s <= 0 or not select.select([self._screen], [], [], left_s)[0]:
                self._bash.kill()
                raise AssertionError(f"not within {PATIENCE_S:g} s: {seen}")
            seen += os.read(self._screen, 65_536).decode().replace("\r\n", "\n")
        return seen
