"""The version of the sidecar and of Python, and whether the hot modules are compiled."""

from __future__ import annotations

import platform
from importlib import metadata

from sidecar.domain import values


def _version() -> str:
    try:
        return metadata.version("sidecar")
    except metadata.PackageNotFoundError:  # the source tree is not installed
        return "0+source"


VERSION = _version()
PYTHON_VERSION = platform.python_version()
IS_COMPILED = not values.__file__.endswith(".py")
BUILD = "compiled" if IS_COMPILED else "pure"
"""`compiled` = mypyc compiled the modules of the hot path; `pure` = every module is Python source."""
