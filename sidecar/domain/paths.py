"""
Normalizes request paths, and refuses every path that two programs could interpret differently.

The proxy, the sidecar and the upstream all interpret the path. If they disagreed, the sidecar could check the
scope of one resource while the upstream serves another. Ambiguous paths are therefore refused, never
repaired. Other paths are converted to the normal form of RFC 3986 6.2.2:

* the query is dropped;
* an escape of a character that a segment may contain unescaped becomes that character (`%61` is `a`,
  `%40` is `@`);
* every other escape is kept, with upper-case digits (`%c3%a9` is `%C3%A9`).

A trailing slash and letter case are kept. Upstreams treat them differently, and also decode different escapes
before routing: `route_readings` compares the routes of all common interpretations.
"""

from __future__ import annotations

import re
from itertools import product
from typing import Final
from urllib.parse import unquote_to_bytes

from sidecar.domain.path_faults import PathFault, PathRefusedError

PATH_CHARS_MAX: Final = 8_192
"""Default maximum length of a path without query; RFC 9112 3 recommends at least 8,000."""


# RFC 3986 3.3: a segment is pchar*. Excluded: '%', and ';', which some upstreams cut off.
_SEGMENT_CHARS: Final = r"A-Za-z0-9\-._~!$&'()*+,=:@"
# RFC 9112 3.2: a request target is visible ASCII; a fragment is never sent.
_VISIBLE_CHARS: Final = r"!-\"$-~"
PLAIN_TARGET: Final = re.compile(rf"(/[{_SEGMENT_CHARS}/]*+)(?:\?[{_VISIBLE_CHARS}]*+)?+").fullmatch
# The same without upper-case letters and without a '/' at the end of the path, which matches most paths.
_SIMPLE_CHARS: Final = _SEGMENT_CHARS.replace("A-Z", "")
SIMPLE_TARGET: Final = re.compile(rf"(/[{_SIMPLE_CHARS}/]*+(?<!/))(?:\?[{_VISIBLE_CHARS}]*+)?+").fullmatch
_VISIBLE_TARGET: Final = re.compile(rf"[{_VISIBLE_CHARS}]*").fullmatch
_PATH_WITH_ESCAPES: Final = re.compile(rf"[{_SEGMENT_CHARS}/%]*").fullmatch
_SEGMENT_CHAR: Final = re.compile(rf"[{_SEGMENT_CHARS}]").fullmatch
_DOT_SEGMENT: Final = re.compile(r"/\.\.?(?:/|\Z)").search
_TWO_HEX_DIGITS: Final = re.compile("[0-9A-Fa-f]{2}").fullmatch
_CONTROLS: Final = frozenset([*range(0x20), 0x7F])
_AMBIGUOUS: Final = frozenset(b"/\\.%;")  # a second decoding by another program would change the segments


def normalize_path(raw: str, chars_max: int = PATH_CHARS_MAX) -> str:
    """
    Return the normal form of the path of request target *raw*, which may have a query.

    >>> normalize_path("/v1/%6Frders/caf%c3%a9?expand=lines")
    '/v1/orders/caf%C3%A9'

    The whole target must be visible ASCII. The query is not checked otherwise, and not counted in
    *chars_max*.

    Raises:
        PathRefusedError: programs could interpret the path differently.
    """
    plain = PLAIN_TARGET(raw)
    if plain:
        path = plain[1]
        # '/.' may be harmless: '/.well-known'
        if len(path) <= chars_max and "//" not in path and "/." not in path:
            return path
    path, _, query = raw.partition("?")
    if len(path) > chars_max:
        raise PathRefusedError(PathFault.TOO_LONG, chars_max)
    fault = _target_fault(path, query) or _path_fault(path)
    if fault is not None:
        raise PathRefusedError(fault)
    return _normalize_escapes(path) if "%" in path else path


def decode_unreserved(path: str) -> str:
    """
    Decode only the unreserved characters of *path*, which has a normal form (RFC 3986 6.2.2.2).

    >>> decode_unreserved("/%75sers/%40me")
    '/users/%40me'
    """
    head, *pieces = path.split("%")
    return head + "".join(_UNRESERVED.get(piece[:2], f"%{piece[:2].upper()}") + piece[2:] for piece in pieces)


def _target_fault(path: str, query: str) -> PathFault | None:
    if not path.startswith("/"):
        return PathFault.NOT_ABSOLUTE
    if "#" in path or "#" in query:
        return PathFault.FRAGMENT
    if not path.isascii():
        return PathFault.NOT_ASCII
    if not _VISIBLE_TARGET(path):
        return PathFault.ILLEGAL_CHARACTER
    return None if _VISIBLE_TARGET(query) else PathFault.ILLEGAL_QUERY


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


def _normalize_escapes(path: str) -> str:
    head, *pieces = path.split("%")
    try:
        normal = head + "".join([_NORMAL_ESCAPES[piece[:2]] + piece[2:] for piece in pieces])
    except KeyError as unknown:
        raise PathRefusedError(_escape_fault(unknown.args[0])) from None
    try:
        # Overlong forms, such as %C0%AF for '/', are not UTF-8, but some decoders accept them.
        unquote_to_bytes(normal).decode()
    except UnicodeDecodeError:
        raise PathRefusedError(PathFault.NOT_UTF8) from None
    return normal


def _escape_fault(digits: str) -> PathFault:
    """Return why the escape of *digits*, which has no normal form, is refused."""
    if not _TWO_HEX_DIGITS(digits):
        return PathFault.MALFORMED_ESCAPE
    octet = int(digits, 16)
    if octet in _CONTROLS:
        return PathFault.ENCODED_CONTROL
    return PathFault.PATH_PARAMETER if octet == ord(";") else PathFault.ENCODED_SEPARATOR


def _normal_escapes() -> dict[str, str]:
    """Map the two digits of each allowed escape, in upper and lower case, to its normal form."""
    forms = {}
    for digits in map("".join, product("0123456789abcdefABCDEF", repeat=2)):
        octet = int(digits, 16)
        if octet not in _CONTROLS and octet not in _AMBIGUOUS:
            forms[digits] = chr(octet) if _SEGMENT_CHAR(chr(octet)) else "%" + digits.upper()
    return forms


_NORMAL_ESCAPES: Final = _normal_escapes()
_UNRESERVED: Final = {
    digits: form for digits, form in _NORMAL_ESCAPES.items() if form.isalnum() or form in "-_~"
}
