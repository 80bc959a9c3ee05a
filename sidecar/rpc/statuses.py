"""gRPC status codes and the exception that carries them.

Source: grpc/doc/statuscodes.md.
"""

from __future__ import annotations

from enum import IntEnum


class StatusCode(IntEnum):
    """The seventeen gRPC status codes, by their wire number."""

    OK = 0
    CANCELLED = 1
    UNKNOWN = 2
    INVALID_ARGUMENT = 3
    DEADLINE_EXCEEDED = 4
    NOT_FOUND = 5
    ALREADY_EXISTS = 6
    PERMISSION_DENIED = 7
    RESOURCE_EXHAUSTED = 8
    FAILED_PRECONDITION = 9
    ABORTED = 10
    OUT_OF_RANGE = 11
    UNIMPLEMENTED = 12
    INTERNAL = 13
    UNAVAILABLE = 14
    DATA_LOSS = 15
    UNAUTHENTICATED = 16


class RpcError(Exception):
    """
    Ends a call with a non-OK status; the caller receives its detail.

    Any other exception of a handler ends the call as UNKNOWN, without the exception's text.
    """

    def __init__(self, code: StatusCode, detail: str) -> None:
        """Store *code* (never OK) and *detail*, a short sentence that is safe to publish."""
        super().__init__(detail)
        self.code = code
        self.detail = detail
