"""`python -m sidecar.cli` is `sidecar`."""

from __future__ import annotations

from sidecar.cli import main

main()
