"""`python -m sidecar.app.cli` is `sidecar`."""

from __future__ import annotations

from sidecar.app.cli import main

main()
