"""A new kind of listener is a setting and its wiring, and no change in the supervisor."""

from __future__ import annotations

import ast

from sidecar.process.settings import DECIDING_KINDS, LISTEN_KINDS

from .source import python_sources, report

KNOW_KINDS = {
    "sidecar/process/settings.py": LISTEN_KINDS,
    "sidecar/process/wiring.py": LISTEN_KINDS,
    "sidecar/process/config.py": ("admin",),  # what takes administrators' tokens needs more than other kinds
    "sidecar/process/config_checks.py": ("admin",),
}


def kinds_named(tree: ast.AST) -> list[tuple[int, str]]:
    """Where code names a kind: as a separate text, or as a key of `listen`."""
    named = []
    for node in ast.walk(tree):
        match node:
            case ast.Constant(value=str(kind)) if kind in LISTEN_KINDS:
                named.append((node.lineno, kind))
            case ast.Attribute(value=ast.Attribute(attr="listen"), attr=kind) if kind in LISTEN_KINDS:
                named.append((node.lineno, kind))
    return named


def test_listener_kinds__are_named_in_settings_and_wiring_alone() -> None:
    """Reports, take-over, reload and drain go through all kinds there are."""
    assert DECIDING_KINDS
    report(
        [
            f"{source.path}:{line}: names the kind {kind!r}: go through the kinds of `settings`"
            for source in python_sources()
            if source.path.startswith("sidecar/process/")
            for line, kind in kinds_named(source.tree)
            if kind not in KNOW_KINDS.get(source.path, ())
        ]
    )
