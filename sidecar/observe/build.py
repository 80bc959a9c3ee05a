"""Which build this is."""

from __future__ import annotations

import platform
from importlib import metadata


def _version() -> str:
    try:
        return metadata.version("sidecar")
    except metadata.PackageNotFoundError:  # run from a source tree that was not installed
        return "0+source"


VERSION = _version()
PYTHON_VERSION = platform.python_version()
