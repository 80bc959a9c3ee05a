"""What ends the start of a supervisor when it is nobody's mistake in a file."""

from __future__ import annotations


class StartError(Exception):
    """A worker ended before it served, or could not be started at all."""
