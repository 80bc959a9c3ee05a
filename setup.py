"""
Builds the compiled wheel when `SIDECAR_COMPILED=1` is set, and otherwise the pure one.

mypyc compiles the modules listed in pyproject.toml, `[tool.sidecar] compiled`, in one group. That needs a C
compiler, Python's headers and the packages of the extra `dev`; scripts/compiled.sh runs it.
"""

from __future__ import annotations

import os
import tomllib
from pathlib import Path

from setuptools import setup

if os.environ.get("SIDECAR_COMPILED") == "1":
    os.environ.setdefault(
        "MYPY_CACHE_DIR", "build/mypy_cache"
    )  # its options differ from those of `make type`
    from mypyc.build import mypycify

    modules = tomllib.loads(Path("pyproject.toml").read_text())["tool"]["sidecar"]["compiled"]
    setup(ext_modules=mypycify(modules, opt_level="3", group_name="sidecar"))
else:
    setup()
