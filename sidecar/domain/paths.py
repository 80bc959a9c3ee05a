"""
One spelling for each request path, and a refusal for every path that two programs could read differently.

A proxy, this sidecar and the upstream all interpret the path. Where they might disagree, a scope could be
checked for one resource and another one be served, so such a path is refused and never repaired. What is
left is put into the normal form of RFC 3986 6.2.2:

* the query is dropped;
* an escape of a character that may stand in a segment as it is becomes that character (`%61` is `a`,
  `%40` is `@`), because upstreams decode both spellings alike before they route;
* every other escape stays, with upper-case digits (`%c3%a9` is `%C3%A9`).

A trailing slash is kept; route tables treat '/a/' and '/a' alike. Letter case is kept, too: an upstream
that ignores it must be given routes that do not depend on it.
"""

from __future__ import annotations

import re
from enum import Enum
from itertools import product
from urllib.parse import unquote_to_bytes

PATH_CHARS_MAX = 8_192
"""Longest request target, query included; RFC 9112 3 asks servers for at least 8,000."""


class PathFault(Enum):
    """Why a path is refused; the value completes the sentence 'the path ...'."""

    TOO_LONG = f"is longer than {PATH_CHARS_MAX} characters"
    NOT_ABSOLUTE = "does not start with '/'"
    ILLEGAL_CHARACTER = "holds a character that must be percent-encoded or is not allowed at all"
    FRAGMENT = "holds a '#'"
    BACKSLASH = "holds a backslash"
    PATH_PARAMETER = "holds a ';', plain or as %3B"
    EMPTY_SEGMENT = "holds '//'"
    DOT_SEGMENT = "holds a '.' or '..' segment"
    MALFORMED_ESCAPE = "holds a '%' that is not followed by two hex digits"
    ENCODED_SEPARATOR = "holds an encoded '/', '\\', '.' or '%' (%2F, %5C, %2E, %25)"
    ENCODED_CONTROL = "holds an encoded control character (%00 to %1F, %7F)"
    NOT_UTF8 = "holds escapes that are not UTF-8"


class PathRefusedError(ValueError):
    """A path that has no single meaning; `fault` is why. The message never quotes the path."""

    def __init__(self, fault: PathFault) -> None:
        """Name the fault in the message."""
        super().__init__(f"the path {fault.value}")
        self.fault = fault


# RFC 3986 3.3: a segment is pchar*. Left out here: '%', and ';', which some upstreams cut off.
_SEGMENT_CHARS = r"A-Za-z0-9\-._~!$&'()*+,=:@"
# RFC 9112 3.2: a request target is visible ASCII; a fragment is never sent.
_VISIBLE_CHARS = r"!-\"$-~"
_PLAIN_TARGET = re.compile(rf"(/[{_SEGMENT_CHARS}/]*+)(?:\?[{_VISIBLE_CHARS}]*+)?+").fullmatch
_VISIBLE_TARGET = re.compile(rf"[{_VISIBLE_CHARS}]*").fullmatch
_PATH_WITH_ESCAPES = re.compile(rf"[{_SEGMENT_CHARS}/%]*").fullmatch
_SEGMENT_CHAR = re.compile(rf"[{_SEGMENT_CHARS}]").fullmatch
_DOT_SEGMENT = re.compile(r"/\.\.?(?:/|\Z)").search
_TWO_HEX_DIGITS = re.compile("[0-9A-Fa-f]{2}").fullmatch
_CONTROLS = frozenset([*range(0x20), 0x7F])
_AMBIGUOUS = frozenset(b"/\\.%;")  # decoded once more by the next program, they change the segments


def normalise_path(raw: str) -> str:
    """
    The one normal form of the path of request target *raw*, which may hold a query.

    >>> normalise_path("/v1/%6Frders/caf%c3%a9?expand=lines")
    '/v1/orders/caf%C3%A9'

    The whole target must be visible ASCII; the query is not looked at beyond that.

    Raises:
        PathRefusedError: the path could mean different things to different programs.
    """
    plain = _PLAIN_TARGET(raw)
    if plain and len(raw) <= PATH_CHARS_MAX:
        path = plain[1]
        if "//" not in path and "/." not in path:  # '/.' may be harmless: '/.well-known'
            return path
    path = raw.partition("?")[0]
    fault = _target_fault(raw) or _path_fault(path)
    if fault is not None:
        raise PathRefusedError(fault)
    return _normalise_escapes(path) if "%" in path else path


def _target_fault(raw: str) -> PathFault | None:
    if len(raw) > PATH_CHARS_MAX:
        return PathFault.TOO_LONG
    if not raw.startswith("/"):
        return PathFault.NOT_ABSOLUTE
    if not _VISIBLE_TARGET(raw):
        return PathFault.FRAGMENT if "#" in raw else PathFault.ILLEGAL_CHARACTER
    return None


def _path_fault(path: str) -> PathFault | None:
    if "\\" in path:
        return PathFault.BACKSLASH
    if ";" in path:
        return PathFault.PATH_PARAMETER
    if "//" in path:
        return PathFault.EMPTY_SEGMENT
    if _DOT_SEGMENT(path):
        return PathFault.DOT_SEGMENT
    if not _PATH_WITH_ESCAPES(path):
        return PathFault.ILLEGAL_CHARACTER
    return None


def _normalise_escapes(path: str) -> str:
    head, *pieces = path.split("%")
    try:
        normal = head + "".join([_NORMAL_ESCAPES[piece[:2]] + piece[2:] for piece in pieces])
    except KeyError as unknown:
        raise PathRefusedError(_escape_fault(unknown.args[0])) from None
    try:
        # Over-long forms, such as %C0%AF for '/', are not UTF-8; some decoders take them all the same.
        unquote_to_bytes(normal).decode()
    except UnicodeDecodeError:
        raise PathRefusedError(PathFault.NOT_UTF8) from None
    return normal


def _escape_fault(digits: str) -> PathFault:
    """Why the escape of *digits*, which has no normal form, is refused."""
    if not _TWO_HEX_DIGITS(digits):
        return PathFault.MALFORMED_ESCAPE
    octet = int(digits, 16)
    if octet in _CONTROLS:
        return PathFault.ENCODED_CONTROL
    return PathFault.PATH_PARAMETER if octet == ord(";") else PathFault.ENCODED_SEPARATOR


def _normal_escapes() -> dict[str, str]:
    """The normal form of each escape that is allowed, by its two digits in any case."""
    forms = {}
    for digits in map("".join, product("0123456789abcdefABCDEF", repeat=2)):
        octet = int(digits, 16)
        if octet not in _CONTROLS and octet not in _AMBIGUOUS:
            forms[digits] = chr(octet) if _SEGMENT_CHAR(chr(octet)) else "%" + digits.upper()
    return forms


_NORMAL_ESCAPES = _normal_escapes()
