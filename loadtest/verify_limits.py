"""`python -m loadtest.verify_limits`: runs `sidecar verify-limits`, without `--store` on a new Redis."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

from loadtest.redis_servers import RedisServer


def main(arguments: list[str]) -> int:
    """Run the command with *arguments*; return the exit code."""
    command = [sys.executable, "-m", "sidecar.cli", "verify-limits", *arguments]
    if any(argument.startswith("--store") for argument in arguments):
        return subprocess.run(command).returncode
    with tempfile.TemporaryDirectory(prefix="sidecar-redis-") as folder:
        server = RedisServer(Path(folder)).start()
        try:
            return subprocess.run([*command, "--store", server.url]).returncode
        finally:
            server.stop()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
