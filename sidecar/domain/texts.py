"""Free text that administrators write: its length, its characters, and no secret in it."""

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
    True when *text* holds something in the shape of an API key, a token, a signing secret or a digest.

    >>> holds_secret("leaked: sck_q2R8mW0bTz_000000000000000000000000000000abcdef"), holds_secret("leaked")
    (True, False)
    """
    return _SECRETS.search(text) is not None


def text_problems(field: str, text: str, length_max: int, *, is_required: bool = False) -> list[Problem]:
    """What is wrong with *text* as the value of *field*; the message never quotes a secret."""
    if is_required and not text.strip():
        code = Code.REASON_REQUIRED if field == "reason" else Code.INVALID_VALUE
        return [Problem(code, field, f"{field} is empty", f"say it in 1-{length_max} characters")]
    if holds_secret(text):
        return [
            Problem(
                Code.HOLDS_SECRET,
                field,
                f"{field} holds what looks like an API key, a token, a signing secret or a digest",
                "leave it out and name the credential by its id: this text is kept for ever",
            )
        ]
    if len(text) > length_max or not text.isprintable():
        return [
            Problem(
                Code.INVALID_VALUE,
                field,
                f"{field} must be at most {length_max} printable characters on one line,"
                f" not {len(text)} characters: {text[:40]!a}",
                "shorten it, and leave out line breaks and control characters",
            )
        ]
    return []
