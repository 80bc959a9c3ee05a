"""The declarative registry file: what it says, and what is reported about its mistakes."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sidecar.domain.cidr import parse_cidr
from sidecar.domain.enforcement import Rule
from sidecar.domain.fail_policy import FailPolicy
from sidecar.domain.integrations import Credential, Integration, Status
from sidecar.domain.scopes import DEFAULT_CATEGORIES, Scope, ScopeCatalogue, ScopeCategory
from sidecar.sources.file_faults import FAULTS_SHOWN_MAX, FileFaultsError
from sidecar.stores.registry.file import registry_file
from sidecar.stores.registry.file.registry_file import (
    dump_registry,
    load_registry_bytes,
    parse_declarations,
    parse_registry,
)
from sidecar.stores.registry.file.registry_records import (
    integration_from_dict,
    integration_to_dict,
    iso_time,
    microseconds_of,
)

DIGEST = "sha256:" + 64 * "0"
FIXTURES = Path(__file__).parents[3] / "fixtures" / "config" / "registry"
CATALOGUE = ScopeCatalogue()


def parse(text: str) -> tuple[Integration, ...]:
    """The records of a registry."""
    return parse_registry(text.encode(), "registry.yaml", CATALOGUE).records


def mistakes(content: bytes, file: str = "FILE") -> list[str]:
    """What is reported about a registry that is not accepted."""
    with pytest.raises(FileFaultsError) as caught:
        parse_registry(content, file, CATALOGUE)
    return list(caught.value.lines())


def test_registry__every_field() -> None:
    """Each field of the file arrives in its place."""
    text = f"""
integrations:
  - id: acme-erp
    name: Acmé ERP
    status: suspended
    scopes: [orders:read, finance:write]
    rate_limit_rpm: 600
    burst: 100
    on_store_error: local
    shadow: [limit, allowlist]
    ip_allowlist: [192.0.2.0/24, "2001:db8::/32", 198.51.100.7]
    is_allowlist_enabled: false
    contact: ops@acme.example
    owner: Acmé Ops
    third_party_manager: ""
    credentials:
      - id: 0123456789
        digest: {DIGEST}
        expires_at: 2027-01-31T00:00:00+01:00
      - {{id: no, digest: "{DIGEST}"}}
"""
    assert parse(text) == (
        Integration(
            "acme-erp",
            "Acmé ERP",
            Status.SUSPENDED,
            frozenset({Scope("orders", "read"), Scope("finance", "write")}),
            600,
            100,
            (parse_cidr("192.0.2.0/24"), parse_cidr("2001:db8::/32"), parse_cidr("198.51.100.7/32")),
            (Credential("0123456789", DIGEST, 1_801_350_000_000_000), Credential("no", DIGEST)),
            contact="ops@acme.example",
            owner="Acmé Ops",
            is_allowlist_enabled=False,
            on_store_error=FailPolicy.LOCAL,
            shadow=frozenset({Rule.ALLOWLIST, Rule.LIMIT}),
        ),
    )


def test_registry__defaults() -> None:
    """Only id and name are needed: no scopes, 60 requests a minute, any address, no keys."""
    assert parse("integrations: [{id: a, name: b}]") == (Integration("a", "b"),)
    with_nulls = "integrations: [{id: a, name: b, status: , burst: null, credentials: ~, ip_allowlist: }]"
    assert parse(with_nulls) == (Integration("a", "b"),)
    assert parse("integrations: []") == ()


def test_declarations__know_what_is_written() -> None:
    """The keys of each integration, in the order of the file; what is null is not written."""
    text = b"integrations: [{id: a, name: A, contact: ''}, {id: b, name: B, status: ~, contact: null}]"
    first, second = parse_declarations(text, "FILE", CATALOGUE).declarations
    assert (first.record, first.keys) == (Integration("a", "A"), frozenset({"id", "name", "contact"}))
    assert (second.record, second.keys) == (Integration("b", "B"), frozenset({"id", "name"}))
    with pytest.raises(FileFaultsError, match="'name' is missing"):
        parse_declarations(b"integrations: [{id: a}]", "FILE", CATALOGUE)


def test_registry__text_stays_text() -> None:
    """Names and ids that YAML takes for numbers, dates or truth are what was written."""
    records = parse("integrations: [{id: 007, name: 1e3}, {id: 2027-01-31, name: no}]")
    assert [(record.id, record.name) for record in records] == [("007", "1e3"), ("2027-01-31", "no")]


def test_registry__anchors_save_repetition() -> None:
    """An allowlist may be written once and used often."""
    first, second = parse(
        "integrations: [{id: a, name: A, ip_allowlist: &office [192.0.2.0/24]},"
        " {id: b, name: B, ip_allowlist: *office}]"
    )
    assert first.ip_allowlist == second.ip_allowlist == (parse_cidr("192.0.2.0/24"),)


def test_registry__other_categories() -> None:
    """Scopes are those of the configuration's categories."""
    catalogue = ScopeCatalogue([ScopeCategory("payroll", "Payroll")])
    content = b"integrations: [{id: a, name: A, scopes: [payroll:read]}]"
    assert parse_registry(content, "FILE", catalogue).records[0].scopes == {Scope("payroll", "read")}


def expected_of(path: Path) -> list[str]:
    """The lines '# expected: ...' at the head of a fixture."""
    lines = path.read_text().splitlines()
    return [line.removeprefix("# expected: ") for line in lines if line.startswith("# expected: ")]


@pytest.mark.parametrize("path", sorted(FIXTURES.glob("*.yaml")), ids=lambda path: path.stem)
def test_registry__each_mistake_is_reported(path: Path) -> None:
    """Each mistake names file, line, integration, field and remedy; '...' = the YAML parser's own words."""
    expected, reported = expected_of(path), mistakes(path.read_bytes())
    assert expected, "say what is expected"
    assert len(reported) == len(expected)
    for line, wanted in zip(reported, expected, strict=True):
        assert line.startswith(wanted[:-3]) if wanted.endswith("...") else line == wanted


def test_registry__no_mistake_shows_a_secret() -> None:
    """Anyone who puts an API key where its digest belongs does not find it in a log."""
    path = FIXTURES / "credential-with-the-key-itself.yaml"
    assert "hunter2" in path.read_text()
    assert "hunter2" not in "\n".join(mistakes(path.read_bytes()))


def test_registry__a_thousand_mistakes_are_reported_in_bounds() -> None:
    """All are counted, the first twenty reported."""
    content = "integrations:\n" + "".join(f"  - {{id: {n}, name: N, burst: 0}}\n" for n in range(1_000))
    reported = mistakes(content.encode())
    assert len(reported) == FAULTS_SHOWN_MAX + 1
    assert reported[-1] == "... and 980 more; fix these first"


def test_registry__not_utf8_names_the_line() -> None:
    """Bytes that are not text are reported with their offset."""
    assert mistakes(b"integrations:\n  - id: a\n    name: \xff\n") == [
        "FILE:3: is not UTF-8 text; save it as UTF-8"
    ]


def test_registry__overlaps_are_warnings() -> None:
    """Entries that add nothing are remarked on, and change nothing."""
    content = b"""
integrations:
  - id: a
    name: A
    scopes: [orders:read, orders:read]
    ip_allowlist:
      - 192.0.2.0/24
      - 192.0.2.128/25
"""
    registry = parse_registry(content, "FILE", CATALOGUE)
    assert len(registry.records[0].ip_allowlist) == 2
    assert list(map(str, registry.warnings)) == [
        "FILE:5: integrations[0] (a).scopes[1]: orders:read is listed more than once",
        "FILE:8: integrations[0] (a).ip_allowlist[1]: 192.0.2.128/25 is already covered by 192.0.2.0/24;"
        " remove it",
    ]


def test_registry__two_on_one_line_are_still_two() -> None:
    """Uniqueness does not depend on how the file is broken into lines."""
    reported = mistakes(b"integrations: [{id: a, name: A}, {id: a, name: A}]")
    assert len(reported) == 1
    assert "already used by integrations[0] (a)" in reported[0]


@pytest.mark.parametrize("problem", ["missing", "directory", "pipe", "too large", "closed"])
def test_load_registry_bytes__says_why_not(
    tmp_path: Path, problem: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file that cannot be read is a mistake like any other; a pipe never makes us wait."""
    path = tmp_path / "registry.yaml"
    if problem == "directory":
        path.mkdir()
    elif problem == "pipe":
        os.mkfifo(path)
    elif problem == "too large":
        monkeypatch.setattr(registry_file, "REGISTRY_BYTES_MAX", 10)
        path.write_text("integrations: []")
    elif problem == "closed":
        path.symlink_to(path)  # a loop: what root meets in place of a permission
    with pytest.raises(FileFaultsError) as caught:
        load_registry_bytes(path, "the-registry.yaml")
    assert str(caught.value).startswith("the-registry.yaml: ")


def test_load_registry_bytes__takes_exactly_the_bound(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file of the largest size is read whole."""
    path = tmp_path / "registry.yaml"
    path.write_text("integrations: []")
    monkeypatch.setattr(registry_file, "REGISTRY_BYTES_MAX", len("integrations: []"))
    assert load_registry_bytes(path, "FILE").content == b"integrations: []"


CREDENTIALS = st.builds(
    Credential,
    st.from_regex(r"[0-9A-Za-z-]{1,32}", fullmatch=True),
    st.from_regex(r"sha256:[0-9a-f]{64}", fullmatch=True),
    st.none() | st.integers(0, 4_000_000_000_000_000),
)
BLOCKS = st.builds(
    lambda number, length: parse_cidr(f"{number >> 24 & 255}.{number >> 16 & 255}.0.0/{length}"),
    st.integers(0, 2**32 - 1),
    st.integers(16, 32),
)
DETAILS = st.text(st.characters(categories=("L", "N", "P", "S"), include_characters=" "), max_size=20)
RECORDS = st.builds(
    Integration,
    st.from_regex(r"[a-z0-9][a-z0-9._-]{0,20}", fullmatch=True),
    st.text(min_size=1, max_size=20).filter(str.isprintable),
    st.sampled_from(Status),
    st.frozensets(st.sampled_from([Scope(category.name, "read") for category in DEFAULT_CATEGORIES])),
    st.integers(1, 10_000),
    st.none() | st.integers(1, 1_000_000),
    st.lists(BLOCKS, max_size=5).map(tuple),
    st.lists(CREDENTIALS, max_size=3, unique_by=lambda one: one.id).map(tuple),
    contact=DETAILS,
    owner=DETAILS,
    third_party_manager=DETAILS,
    is_allowlist_enabled=st.booleans(),
    on_store_error=st.none() | st.sampled_from(FailPolicy),
    shadow=st.frozensets(st.sampled_from(Rule)),
).map(lambda one: one if one.ip_allowlist else replace(one, is_allowlist_enabled=True))


@settings(max_examples=50)
@given(RECORDS)
def test_integration_to_dict__is_undone_by_from_dict(record: Integration) -> None:
    """Plain data holds all of a record that can be declared."""
    again = integration_from_dict(integration_to_dict(replace(record, generation=7)), CATALOGUE)
    assert again == record


@settings(max_examples=20)
@given(st.lists(RECORDS, max_size=4, unique_by=lambda one: one.id))
def test_dump_registry__reads_back(records: list[Integration]) -> None:
    """A dumped registry is a registry with the same records."""
    seen: set[str] = set()
    unique = []
    for record in records:  # credential ids are unique in a registry
        fresh = tuple(credential for credential in record.credentials if credential.id not in seen)
        seen |= {credential.id for credential in fresh}
        unique.append(replace(record, credentials=fresh))
    assert parse(dump_registry(unique)) == tuple(unique)


def test_integration_from_dict__names_the_mistake() -> None:
    """Plain data is checked as a file is."""
    with pytest.raises(FileFaultsError, match=r"integration:1: \(a\)\.burst: burst is"):
        integration_from_dict({"id": "a", "name": "A", "burst": 0}, CATALOGUE)


@pytest.mark.parametrize(
    "text", ["1970-01-01T00:00:00Z", "2027-01-31T12:34:56.000001Z", "2099-12-31T23:59:59Z"]
)
def test_iso_time__is_undone_by_microseconds_of(text: str) -> None:
    """Times keep their microseconds both ways."""
    assert iso_time(microseconds_of(text)) == text
