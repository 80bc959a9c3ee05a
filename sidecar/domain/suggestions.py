"""Suggestions for names that do not exist."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

WANTED_CHARS_MAX = 80
"""Maximum compared length of a name: the cost grows with the length."""


def closest(wanted: str, known: Iterable[str]) -> str:
    """
    Return the name in *known* that is most similar to *wanted*; '' = none is similar.

    >>> closest("acme-epr", ("acme-erp", "bolt")), closest("zzz", ("acme-erp", "bolt"))
    ('acme-erp', '')
    """
    found = difflib.get_close_matches(wanted[:WANTED_CHARS_MAX], list(known), n=1, cutoff=0.7)
    return found[0] if found else ""


def did_you_mean(wanted: str, known: Iterable[str]) -> str:
    """
    Return a suggestion to append to an error about *wanted*; '' = none.

    >>> did_you_mean("order:read", ("orders:read", "orders:write"))
    "; did you mean 'orders:read'?"
    """
    meant = closest(wanted, known)
    return f"; did you mean {meant!r}?" if meant else ""
