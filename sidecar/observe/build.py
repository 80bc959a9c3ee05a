"""The version of the sidecar and of Python."""

from __future__ import annotations

import platform
from importlib import metadata


def _version() -> str:
    try:
        return metadata.version("sidecar")
    except metadata.PackageNotFoundError:  # the source tree is not installed
        return "0+source"


VERSION = _version()
PYTHON_VERSION = platform.python_version()
