"""What somebody may have meant by a name that does not exist."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

WANTED_CHARS_MAX = 80
"""Of a name that is compared: its cost grows with the length."""


def closest(wanted: str, known: Iterable[str]) -> str:
    """
    The name among *known* that is most like *wanted*, '' = none is like it.

    >>> closest("acme-epr", ("acme-erp", "bolt")), closest("zzz", ("acme-erp", "bolt"))
    ('acme-erp', '')
    """
    found = difflib.get_close_matches(wanted[:WANTED_CHARS_MAX], list(known), n=1, cutoff=0.7)
    return found[0] if found else ""


def did_you_mean(wanted: str, known: Iterable[str]) -> str:
    """
    The end of a message about *wanted*, '' = there is nothing to suggest.

    >>> did_you_mean("order:read", ("orders:read", "orders:write"))
    "; did you mean 'orders:read'?"
    """
    meant = closest(wanted, known)
    return f"; did you mean {meant!r}?" if meant else ""
