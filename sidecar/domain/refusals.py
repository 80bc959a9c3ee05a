"""
Refusals of administrators' changes, as data for the API and for people.

Every problem has a `code` and a `message` (what is wrong), a `field` (where) and a `remedy` (what to do).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from typing import ClassVar


class RefusalKind(Enum):
    """The four kinds of refusal; the API maps each kind to one HTTP status."""

    INVALID = "invalid"
    FORBIDDEN = "forbidden"
    NOT_FOUND = "not_found"
    CONFLICT = "conflict"


class Code(Enum):
    """
    The closed list of problem codes, each with its kind.

    `text` is the code in API answers; it never changes once published.
    """

    INVALID_VALUE = ("invalid_value", RefusalKind.INVALID)
    REASON_REQUIRED = ("reason_required", RefusalKind.INVALID)
    HOLDS_SECRET = ("holds_secret", RefusalKind.INVALID)
    UNKNOWN_SCOPE = ("unknown_scope", RefusalKind.INVALID)
    TOO_MANY = ("too_many", RefusalKind.INVALID)
    ALLOWLIST_EMPTY = ("allowlist_empty", RefusalKind.INVALID)

    ROLE_FORBIDS = ("role_forbids", RefusalKind.FORBIDDEN)
    SAME_ADMINISTRATOR = ("same_administrator", RefusalKind.FORBIDDEN)
    GRANTED_BY_SUSPENDER = ("granted_by_suspender", RefusalKind.FORBIDDEN)
    ACTOR_ENDED = ("actor_ended", RefusalKind.FORBIDDEN)

    INTEGRATION_UNKNOWN = ("integration_unknown", RefusalKind.NOT_FOUND)
    INTEGRATION_DELETED = ("integration_deleted", RefusalKind.NOT_FOUND)
    CREDENTIAL_UNKNOWN = ("credential_unknown", RefusalKind.NOT_FOUND)
    ENTRY_UNKNOWN = ("entry_unknown", RefusalKind.NOT_FOUND)
    SECRET_UNKNOWN = ("secret_unknown", RefusalKind.NOT_FOUND)
    RAISE_UNKNOWN = ("raise_unknown", RefusalKind.NOT_FOUND)
    ADMINISTRATOR_UNKNOWN = ("administrator_unknown", RefusalKind.NOT_FOUND)
    TOKEN_UNKNOWN = ("token_unknown", RefusalKind.NOT_FOUND)

    GENERATION_CONFLICT = ("generation_conflict", RefusalKind.CONFLICT)
    ID_TAKEN = ("id_taken", RefusalKind.CONFLICT)
    ID_RETIRED = ("id_retired", RefusalKind.CONFLICT)
    CREDENTIAL_ID_USED = ("credential_id_used", RefusalKind.CONFLICT)
    CREDENTIAL_ENDED = ("credential_ended", RefusalKind.CONFLICT)
    CREDENTIAL_REPLACED = ("credential_replaced", RefusalKind.CONFLICT)
    NO_NEW_CREDENTIAL = ("no_new_credential", RefusalKind.CONFLICT)
    NOT_SUSPENDED = ("not_suspended", RefusalKind.CONFLICT)
    SECRET_EXISTS = ("secret_exists", RefusalKind.CONFLICT)
    LAST_ADMINISTRATOR = ("last_administrator", RefusalKind.CONFLICT)
    NOT_EMPTY = ("not_empty", RefusalKind.CONFLICT)
    NEVER_BOOTSTRAPPED = ("never_bootstrapped", RefusalKind.CONFLICT)
    IDEMPOTENCY_MISMATCH = ("idempotency_mismatch", RefusalKind.CONFLICT)

    def __init__(self, text: str, kind: RefusalKind) -> None:
        """Spread the row over named attributes."""
        self.text = text
        self.kind = kind


@dataclass(frozen=True, slots=True)
class Problem:
    """
    One problem of a command.

    `field` is the command's field, with an index for lists (`entries[3]`), '' = the whole command;
    `remedy` says what to do and is never empty.
    """

    code: Code
    field: str
    message: str
    remedy: str


def with_remedy(message: str, remedy: str) -> str:
    """
    Return *message* and its *remedy*, '' = none, as one text.

    >>> with_remedy("the name is empty", "send a name")
    'the name is empty: send a name'
    >>> with_remedy("no reason 'okay'; did you mean 'ok'?", "send a reason")
    "no reason 'okay'; did you mean 'ok'? Send a reason"
    """
    if not remedy:
        return message
    return f"{message} {remedy[0].upper()}{remedy[1:]}" if message.endswith("?") else f"{message}: {remedy}"


class RefusedError(Exception):
    """
    A change was refused, and nothing was changed.

    `problems` has at least one member, all of one kind.
    """

    kind: ClassVar[RefusalKind]

    def __init__(self, problems: Sequence[Problem]) -> None:
        """Store *problems*; the message has one line for each."""
        self.problems = tuple(problems)
        super().__init__("\n".join(with_remedy(problem.message, problem.remedy) for problem in self.problems))

    @property
    def code(self) -> Code:
        """The code of the first problem."""
        return self.problems[0].code

    @property
    def field(self) -> str:
        """The field of the first problem."""
        return self.problems[0].field

    @property
    def remedy(self) -> str:
        """The remedy of the first problem."""
        return self.problems[0].remedy


class InvalidError(RefusedError):
    """The command is invalid, whatever the state of the registry."""

    kind = RefusalKind.INVALID


class ForbiddenError(RefusedError):
    """The administrator is not permitted to make the change."""

    kind = RefusalKind.FORBIDDEN


class NotFoundError(RefusedError):
    """The command names something that does not exist."""

    kind = RefusalKind.NOT_FOUND


class ConflictError(RefusedError):
    """The current state of the registry does not permit the change."""

    kind = RefusalKind.CONFLICT


class GenerationConflictError(ConflictError):
    """The record has changed since the caller read it; `actual` is its current generation, 0 = absent."""

    def __init__(self, integration_id: str, expected: int, actual: int) -> None:
        """Name both generations in the message."""
        self.expected = expected
        self.actual = actual
        now = f"is at generation {actual}" if actual else "does not exist"
        super().__init__(
            [
                Problem(
                    Code.GENERATION_CONFLICT,
                    "expected_generation",
                    f"{integration_id!r} {now}, not at the expected generation {expected}",
                    "read the integration again, check what changed, and send the new generation",
                )
            ]
        )


_CLASSES: dict[RefusalKind, type[RefusedError]] = {
    error.kind: error for error in (InvalidError, ForbiddenError, NotFoundError, ConflictError)
}


def refusal(code: Code, field: str, message: str, remedy: str) -> RefusedError:
    """Return the error of one problem, in the class of its kind."""
    return _CLASSES[code.kind]([Problem(code, field, message, remedy)])


def raise_for(problems: Sequence[Problem]) -> None:
    """
    Raise one error with all *problems*, if there are any.

    Raises:
        RefusedError: of the kind of the first problem; problems of other kinds are omitted.
    """
    if problems:
        kind = problems[0].code.kind
        raise _CLASSES[kind]([problem for problem in problems if problem.code.kind is kind])
