"""Scopes and their categories."""

from __future__ import annotations

import doctest

import pytest

from sidecar.domain import scopes
from sidecar.domain.scopes import (
    DEFAULT_CATEGORIES,
    Scope,
    ScopeCatalogue,
    ScopeCategory,
    ScopeError,
    Sensitivity,
)

READ_ONLY = {"taxonomies", "quality", "activities"}


def test_scopes__examples_in_its_docstrings() -> None:
    """The examples in the module are true."""
    assert doctest.testmod(scopes) == doctest.TestResults(failed=0, attempted=1)


def test_default_categories__are_the_platform_s_fifteen() -> None:
    """Titles, and through them the names, are those the platform lists."""
    assert [category.title for category in DEFAULT_CATEGORIES] == [
        "Inventory", "Consumables", "Orders", "SKUs", "Equipment", "Sensors", "Taxonomies", "Compliance",
        "Reports", "Quality", "Finance", "CRM", "Tasks", "Activities", "Webhooks",
    ]  # fmt: skip
    assert all(category.name == category.title.lower() for category in DEFAULT_CATEGORIES)


def test_default_categories__sensitivities() -> None:
    """Compliance is regulatory, finance financial, CRM personal, webhooks administrative; the rest is not."""
    special = {
        c.name: c.sensitivity for c in DEFAULT_CATEGORIES if c.sensitivity is not Sensitivity.OPERATIONAL
    }
    assert special == {
        "compliance": Sensitivity.REGULATORY,
        "finance": Sensitivity.FINANCIAL,
        "crm": Sensitivity.PII,
        "webhooks": Sensitivity.ADMINISTRATIVE,
    }


def test_default_categories__read_only_marks() -> None:
    """Taxonomies, quality and activities cannot be written."""
    assert {category.name for category in DEFAULT_CATEGORIES if category.read_only} == READ_ONLY


@pytest.mark.parametrize("category", DEFAULT_CATEGORIES, ids=lambda category: category.name)
def test_parse__every_category(category: ScopeCategory) -> None:
    """Read is always a scope; write is one unless the category is read-only. Text and scope round-trip."""
    catalogue = ScopeCatalogue()
    read = catalogue.parse(f"{category.name}:read")
    assert read == Scope(category.name, "read")
    assert catalogue.parse(str(read)) == read
    if category.read_only:
        with pytest.raises(ScopeError, match=f"category {category.title} is read-only"):
            catalogue.parse(f"{category.name}:write")
    else:
        assert catalogue.parse(f"{category.name}:write") == Scope(category.name, "write")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "orders",
        "orders:",
        "orders:delete",
        "orders:READ",
        ":",
        "orders:read:x",
        "orders:read ",
        "orders::read",
    ],
)
def test_parse__refuses_a_malformed_scope(text: str) -> None:
    """Anything but 'category:read' or 'category:write' is an error that quotes it and shows the form."""
    with pytest.raises(ScopeError, match="must be 'category:read' or 'category:write'") as refused:
        ScopeCatalogue().parse(text)
    assert repr(text) in str(refused.value)


@pytest.mark.parametrize("text", ["order:read", "Orders:read", " orders:read", ":read", "invoices:write"])
def test_parse__refuses_an_unknown_category(text: str) -> None:
    """The error names the category and lists those there are."""
    with pytest.raises(ScopeError, match="unknown category") as refused:
        ScopeCatalogue().parse(text)
    assert "known: inventory, consumables, orders," in str(refused.value)


def test_catalogue__of_its_own_categories() -> None:
    """A configuration may define other categories instead of the fifteen."""
    catalogue = ScopeCatalogue([ScopeCategory("robots", "Robots", read_only=True)])
    assert catalogue.parse("robots:read") == Scope("robots", "read")
    with pytest.raises(ScopeError, match="unknown category 'orders'; known: robots"):
        catalogue.parse("orders:read")


def test_catalogue__refuses_a_category_that_stands_twice() -> None:
    """Two categories of one name cannot both be in force."""
    with pytest.raises(ScopeError, match="category 'robots' is defined twice"):
        ScopeCatalogue([ScopeCategory("robots", "Robots"), ScopeCategory("robots", "Roboter")])


@pytest.mark.parametrize("name", ["", "Orders", "a:b", "1st", "_x", "a b", "é", "x" * 33, "orders\n"])
def test_category__refuses_a_name_that_could_not_stand_in_a_scope(name: str) -> None:
    """Names are short, lower-case words, so that a scope can be read back and put into any header."""
    with pytest.raises(ScopeError, match="must be 1-32 of a-z"):
        ScopeCategory(name, "Title")
