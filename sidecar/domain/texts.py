"""Rules for administrators' free text: length, characters, and no secrets."""

from __future__ import annotations

import re

from sidecar.domain.refusals import Code, Problem

NAME_LENGTH_MAX = 128
DETAIL_LENGTH_MAX = 256
REASON_LENGTH_MAX = 500

# API keys and administrators' tokens of any prefix, digests, and Standard Webhooks secrets.
_SECRETS = re.compile(
    r"[0-9A-Za-z]+_[0-9A-Za-z-]{1,32}_[0-9A-Za-z]{20,}"
    r"|whsec_[0-9A-Za-z+/=]{16,}"
    r"|(?<![0-9A-Fa-f])[0-9A-Fa-f]{64}(?![0-9A-Fa-f])"
)


def holds_secret(text: str) -> bool:
    """
    Whether *text* contains something in the form of an API key, a token, a signing secret or a digest.

    >>> holds_secret("leaked: sck_q2R8mW0bTz_000000000000000000000000000000abcdef"), holds_secret("leaked")
    (True, False)
    """
    return _SECRETS.search(text) is not None


def text_problems(field: str, text: str, length_max: int, *, is_required: bool = False) -> list[Problem]:
    """Return the problems of *text* as the value of *field*; the messages never quote a secret."""
    if is_required and not text.strip():
        code = Code.REASON_REQUIRED if field == "reason" else Code.INVALID_VALUE
        return [Problem(code, field, f"{field} is empty", f"write 1-{length_max} characters")]
    if holds_secret(text):
        return [
            Problem(
                Code.HOLDS_SECRET,
                field,
                f"{field} contains what looks like an API key, a token, a signing secret or a digest",
                "remove it and name the credential by its id: this text is stored permanently",
            )
        ]
    if len(text) > length_max or not text.isprintable():
        return [
            Problem(
                Code.INVALID_VALUE,
                field,
                f"{field} has {len(text)} characters ({text[:40]!a}); it must be at most {length_max}"
                " printable characters on one line",
                "shorten it, and remove line breaks and control characters",
            )
        ]
    return []
