"""Path normalization for every input: one form, stable, and never wider than what was asked."""

from __future__ import annotations

import string
from urllib.parse import unquote, unquote_to_bytes

from hypothesis import example, given
from hypothesis import strategies as st

from sidecar.domain.path_faults import PathRefusedError
from sidecar.domain.paths import normalize_path

PLAIN = string.ascii_letters + string.digits + "-._~!$&'()*+,=:@"

pieces = (
    st.sampled_from([*PLAIN, "/", "/", "/", ".", "..", "//", ";", "\\", "%", "?", "#", " ", "\n", "\0", "|"])
    | st.binary(min_size=1, max_size=1).map(lambda octet: f"%{octet.hex()}")
    | st.binary(min_size=1, max_size=1).map(lambda octet: f"%{octet.hex().upper()}")
    | st.characters().map(lambda character: "".join(f"%{o:02x}" for o in character.encode("utf-8", "ignore")))
    | st.characters()
)
raw_paths = st.lists(pieces, max_size=20).map(lambda parts: "/" + "".join(parts)) | st.text(max_size=12)
segments = st.text(
    st.characters(exclude_categories=["C", "Zl", "Zp"], exclude_characters="/\\.%;"), min_size=1
)


def normal_or_none(raw: str) -> str | None:
    """The normal form; None = refused."""
    try:
        return normalize_path(raw)
    except PathRefusedError:
        return None


@given(raw_paths)
@example("/%")
@example("/a%2e%2e")
def test_normalize_path__is_idempotent(raw: str) -> None:
    """The normal form is its own normal form, with or without a query behind it."""
    normal = normal_or_none(raw)
    if normal is not None:
        assert normalize_path(normal) == normal
        assert normalize_path(f"{normal}?{raw.partition('?')[2]}") == normal


@given(raw_paths)
def test_normalize_path__changes_spelling_only(raw: str) -> None:
    """Accepted paths decode to the same bytes, segment by segment, before and after: never another path."""
    normal = normal_or_none(raw)
    if normal is not None:
        path = raw.partition("?")[0]
        assert [unquote_to_bytes(part) for part in normal.split("/")] == [
            unquote_to_bytes(part) for part in path.split("/")
        ]


@given(raw_paths)
def test_normalize_path__accepts_only_unambiguous_paths(raw: str) -> None:
    """Decoded once or twice, what is accepted has the same segments, no dot segment and no control."""
    normal = normal_or_none(raw)
    if normal is not None:
        once = unquote(normal, errors="strict")
        assert unquote(once) == once
        assert once.count("/") == normal.count("/")
        assert not set(once) & {"\\", ";", "\r", "\n", "\0"}
        inner = once[1:].removesuffix("/").split("/") if len(once) > 1 else []
        assert not set(inner) & {"", ".", ".."}
        assert set(normal) <= set(PLAIN + "/%")


@given(st.lists(segments, min_size=1, max_size=4), st.data())
def test_normalize_path__every_spelling_has_one_form(parts: list[str], data: st.DataObject) -> None:
    """However a client escapes the same harmless segments, the normal form is the same."""
    octets = "/".join(parts).encode()

    def spell() -> str:
        spelling = ""
        for octet in octets:
            character = chr(octet)
            if character == "/" or (character in PLAIN and data.draw(st.booleans())):
                spelling += character
            else:
                spelling += data.draw(st.sampled_from([f"%{octet:02x}", f"%{octet:02X}"]))
        return "/" + spelling

    first, second = normalize_path(spell()), normalize_path(spell())
    assert first == second
    assert unquote(first) == "/" + "/".join(parts)
