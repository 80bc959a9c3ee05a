"""The limit of open files at the start of a process."""

from __future__ import annotations

import resource
import subprocess
import sys

import pytest

from sidecar.process.operating_system import FILES_WANTED

SCRIPT = """
import resource
from sidecar.process.operating_system import raise_open_files_limit
hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
resource.setrlimit(resource.RLIMIT_NOFILE, ({soft}, {hard}))
print(raise_open_files_limit(), *resource.getrlimit(resource.RLIMIT_NOFILE))
"""


@pytest.mark.parametrize(("soft", "hard"), [(256, 1_024), (1_024, 1_024), (512, None)])
def test_open_files__the_soft_limit_is_raised(soft: int, hard: int | None) -> None:
    """As far as the hard one allows, and no further than makes sense; the hard one stays."""
    script = SCRIPT.format(soft=soft, hard="hard" if hard is None else hard)
    result = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=60
    )
    told, in_force, limit = map(int, result.stdout.split())
    expected = min(FILES_WANTED, resource.getrlimit(resource.RLIMIT_NOFILE)[1] if hard is None else hard)
    assert told == in_force == expected
    assert hard is None or limit == hard
