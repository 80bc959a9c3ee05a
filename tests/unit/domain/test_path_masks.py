"""Masked segments of paths never reach the decision log, however a client spells them."""

from __future__ import annotations

import pytest

from sidecar.domain.path_masks import PathMaskError, PathMasks


@pytest.mark.parametrize(
    ("path", "masked"),
    [
        ("/customers/42", "/customers/*"),
        ("/customers/42/orders/7", "/customers/*/orders/7"),
        ("/Customers/42", "/Customers/*"),
        ("/custo%6Ders/42", "/customers/*"),
        ("/customers", "/customers"),
        ("/v1/people/a/notes/b/c", "/v1/people/*/notes/*/c"),
        ("/v1/people/a/other/b", "/v1/people/a/other/b"),
        ("/x//customers/42", "*"),
        ("/customers/42;v=1", "*"),
        ("", "*"),
    ],
)
def test_masks__apply(path: str, masked: str) -> None:
    """Each '*' of a mask hides one segment; a path that cannot be read is hidden whole."""
    assert PathMasks(["/customers/*", "/v1/people/*/notes/*"]).apply(path) == masked


def test_masks__without_masks_every_path_stays() -> None:
    """What an attacker sent is worth seeing."""
    assert PathMasks(()).apply("/x//%zz") == "/x//%zz"


@pytest.mark.parametrize("mask", ["customers/*", "/customers", "", "/a*"])
def test_masks__refuse_a_mask_that_hides_nothing(mask: str) -> None:
    """The error shows the form."""
    with pytest.raises(PathMaskError, match=r"'/customers/\*'"):
        PathMasks([mask])
