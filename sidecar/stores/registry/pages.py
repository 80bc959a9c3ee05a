"""What may be asked of a page, the same in every store."""

from __future__ import annotations

from sidecar.domain.refusals import Code, RefusedError, refusal
from sidecar.stores.registry.protocol import PAGE_MAX


def require_limit(limit: int) -> None:
    """
    Check the size of a page.

    Raises:
        InvalidError: it is not 1 ... `PAGE_MAX`.
    """
    if not 1 <= limit <= PAGE_MAX:
        raise refusal(
            Code.INVALID_VALUE,
            "limit",
            f"a page has 1 to {PAGE_MAX} members, not {limit}",
            "ask for fewer, and follow the cursor",
        )


def bad_cursor() -> RefusedError:
    """The refusal of a cursor that is none."""
    return refusal(
        Code.INVALID_VALUE,
        "after",
        "this is no cursor of such a page",
        "start without a cursor, and follow on",
    )
