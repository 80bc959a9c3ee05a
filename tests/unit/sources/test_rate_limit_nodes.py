"""Rate-limit files: every key of envoyproxy/ratelimit, its scalars, its mistakes, each with its place."""

from __future__ import annotations

import pytest

from sidecar.domain.rate_limits.counters import Algorithm
from sidecar.domain.rate_limits.rules import Limit, RateLimits, Rule, Unit
from sidecar.sources.file_faults import FaultList, FileFault
from sidecar.sources.rate_limit_nodes import RateLimitReader, yaml_integer
from tests.golden_rate_limits import read_limits

LIMIT = "rate_limit: {unit: day, requests_per_unit: 1}"


def mistakes(*files: str | bytes, merges: bool = False) -> list[tuple[str, int | None, str, str]]:
    """File, line, field and problem of each mistake in *files*."""
    faults = FaultList("limits")
    reader = RateLimitReader(faults, lambda domain: Algorithm.FIXED_WINDOW, merges)
    for number, content in enumerate(files):
        reader.read(content.encode() if isinstance(content, str) else content, f"{number}.yaml")
    return [(fault.file, fault.line, fault.field, fault.problem) for fault in faults.faults]


def only_mistake(text: str) -> tuple[int | None, str, str]:
    """Line, field and problem of the one mistake in *text*."""
    [(_, line, field, problem)] = mistakes(text)
    return line, field, problem


def rule_of(limits: RateLimits, *entries: tuple[str, str], domain: str = "d") -> Rule:
    """The rule that a descriptor meets."""
    match = limits.domains[domain].match(entries)
    assert match is not None
    return match.rule


def descriptor(text: str) -> str:
    """A file with one descriptor."""
    return f"domain: d\ndescriptors:\n  - {text}\n"


def test_read__every_key_has_its_meaning() -> None:
    """All sixteen keys, and our algorithm."""
    limits = read_limits(
        """
        domain: d
        descriptors:
          - key: path
            value: /v/*
            share_threshold: true
            shadow_mode: yes
            quota_mode: On
            detailed_metric: false
            value_to_metric: n
            metadata: {team: {name: core, size: 3}, on: true, none: ~, list: [1, 1.5, a]}
            rate_limit:
              unit: MiNuTe
              requests_per_unit: 4_000_000_000
              name: narrow
              replaces: [{name: other}]
              algorithm: token_bucket
            descriptors:
              - key: inner
                rate_limit: {unlimited: true}
        """
    )
    rule = rule_of(limits, ("path", "/v/1"))
    assert rule.limit == Limit(
        Unit.MINUTE, 4_000_000_000, "narrow", frozenset({"other"}), Algorithm.TOKEN_BUCKET
    )
    assert (rule.is_shadow, rule.is_quota, rule.shared_pattern) == (True, True, "path_/v/*")
    assert rule.path == "path_/v/*"
    metadata = {"team": {"name": "core", "size": 3}, "on": True, "none": None, "list": [1, 1.5, "a"]}
    assert rule.metadata == metadata
    inner = rule_of(limits, ("path", "/v/1"), ("inner", "x"))
    assert inner.limit == Limit(None)
    assert inner.path == "path_/v/*.inner"


@pytest.mark.parametrize(
    ("written", "value"),
    [
        ("010", "010"), ("yes", "yes"), ("12:30", "12:30"), ("2024-01-01", "2024-01-01"), ("1_0", "1_0"),
        ("1.2.3.4", "1.2.3.4"), ("2001:db8::1", "2001:db8::1"), ("'1.5'", "1.5"), ("0x1F", "0x1F"),
        ("9223372036854775807", "9223372036854775807"), ("!!str 7", "7"), ('"a\\tb"', "a\tb"),
    ],
)  # fmt: skip
def test_read__text_is_what_is_written(written: str, value: str) -> None:
    """A value is compared with what clients send, so nothing is made of it."""
    limits = read_limits(descriptor(f"{{key: k, value: {written}, {LIMIT}}}"))
    assert rule_of(limits, ("k", value)).path == f"k_{value}"


@pytest.mark.parametrize("written", ["~", "null", '""', "''", "Null", ""])
def test_read__an_empty_value_is_any_value(written: str) -> None:
    """Absent, null and empty mean the same."""
    limits = read_limits(f"domain: d\ndescriptors:\n  - key: k\n    value: {written}\n    {LIMIT}\n")
    assert rule_of(limits, ("k", "x")).path == "k"


@pytest.mark.parametrize("written", ["1.5", "1e5", ".inf", "-.INF", ".nan", "1_0.5", "9223372036854775808"])
@pytest.mark.parametrize("key", ["key", "value"])
def test_read__a_float_must_be_quoted(key: str, written: str) -> None:
    """The original refuses it, and does not say where."""
    other = "" if key == "key" else "key: k, "
    line, field, problem = only_mistake(descriptor(f"{{{other}{key}: {written}, {LIMIT}}}"))
    assert (line, field) == (3, f"descriptors[0].{key}")
    assert problem.endswith("put it in quotes")


@pytest.mark.parametrize(
    ("written", "number"),
    [("010", 8), ("0x10", 16), ("0b11", 3), ("0o17", 15), ("1_000", 1_000), ("+5", 5), ("0", 0), ("~", 0)],
)
def test_read__numbers_are_those_of_the_original(written: str, number: int) -> None:
    """Its YAML library knows octal, hexadecimal and binary numbers."""
    limits = read_limits(descriptor(f"{{key: k, rate_limit: {{unit: day, requests_per_unit: {written}}}}}"))
    limit = rule_of(limits, ("k", "")).limit
    assert limit is not None
    assert limit.requests == number


@pytest.mark.parametrize("written", ["'5'", "1.0", "-1", "4294967296", "many", "[1]", "08", "0x" + "f" * 99])
def test_read__other_numbers_are_refused(written: str) -> None:
    """What is no number from 0 to 2^32 - 1 is reported with its place."""
    text = descriptor(f"{{key: k, rate_limit: {{unit: day, requests_per_unit: {written}}}}}")
    line, field, problem = only_mistake(text)
    assert (line, field) == (3, "descriptors[0].rate_limit.requests_per_unit")
    assert problem.startswith("must be a whole number from 0 to 4294967295")


def test_yaml_integer__bounds_its_work() -> None:
    """A long text is no number."""
    assert yaml_integer("1" * 5_000) is None


MISTAKES = [
    ("", 1, "", "'domain' is missing or empty"),
    ("# nothing\n", 1, "", "'domain' is missing or empty"),
    ("Our limits\n", 1, "", "must be a mapping with 'domain' and 'descriptors'"),
    ("domain: ''\n", 1, "", "'domain' is missing or empty"),
    ("domain: [a]\n", 1, "domain", "must be text"),
    ("domain: d\ndescriptors: 5\n", 2, "descriptors", "must be a list"),
    ("domain: d\ndescriptors: [~]\n", 2, "descriptors[0]", "must be a mapping with 'key'"),
    ("domain: d\ndescriptors: [{key: k\n", 3, "", "not YAML"),
    ("domain: d\n---\ndomain: e\n", 2, "", "a second document starts here"),
    ("domain: d\nx-team: a\n", 2, "", "unknown key 'x-team'"),
    ("domain: d\ndomain: e\n", 2, "domain", "is there twice"),
    ("Domain: d\n", 1, "", "unknown key 'Domain'; did you mean 'domain'?"),
    (descriptor("{Key: k}"), 3, "descriptors[0]", "unknown key 'Key'; did you mean 'key'?"),
    (descriptor("{key: k, 5: x}"), 3, "descriptors[0]", "unknown key '5'"),
    (descriptor("{key: k, domain: x}"), 3, "descriptors[0]", "it belongs at the top of the file"),
    (descriptor("{key: k, unit: day}"), 3, "descriptors[0]", "it belongs in 'rate_limit'"),
    (descriptor("{key: k, name: n}"), 3, "descriptors[0]", "it belongs in 'rate_limit'"),
    (
        descriptor("{key: k, rate_limit: {unit: day, requests_per_unit: 1, shadow_mode: true}}"),
        3, "descriptors[0].rate_limit", "it belongs in a descriptor, beside 'key'",
    ),
    (descriptor("{value: v}"), 3, "descriptors[0]", "'key' is missing or empty"),
    (descriptor("{key: ~}"), 3, "descriptors[0]", "'key' is missing or empty"),
    (descriptor("{key: ''}"), 3, "descriptors[0]", "'key' is missing or empty"),
    (descriptor("{key: k, value: [1]}"), 3, "descriptors[0].value", "must be text"),
    (descriptor("{key: k, rate_limit: 5}"), 3, "descriptors[0].rate_limit", "must be a mapping"),
    (descriptor("{key: k, rate_limit: {}}"), 3, "descriptors[0].rate_limit", "unit must be one of second"),
    (descriptor("{key: k, rate_limit: {unit: dya}}"), 3, "descriptors[0].rate_limit.unit", "not 'dya'"),
    (
        descriptor("{key: k, rate_limit: {unit: day, unlimited: true}}"),
        3, "descriptors[0].rate_limit.unit", "has no place beside 'unlimited: true'",
    ),
    (descriptor("{key: k, shadow_mode: 'true'}"), 3, "descriptors[0].shadow_mode", "must be true or false"),
    (descriptor("{key: k, quota_mode: 1}"), 3, "descriptors[0].quota_mode", "must be true or false"),
    (descriptor("{key: k, share_threshold: true}"), 3, "descriptors[0].share_threshold", "needs a wildcard"),
    (descriptor("{key: k, metadata: [1]}"), 3, "descriptors[0].metadata", "must be a mapping"),
    (
        descriptor("{key: k, rate_limit: {unit: day, requests_per_unit: 1, replaces: [a]}}"),
        3, "descriptors[0].rate_limit.replaces[0]", "must be a mapping",
    ),
    (
        descriptor("{key: k, rate_limit: {unit: day, requests_per_unit: 1, replaces: [{name: ''}]}}"),
        3, "descriptors[0].rate_limit.replaces[0]", "'name' is missing or empty",
    ),
    (
        descriptor("{key: k, rate_limit: {unit: day, requests_per_unit: 1, name: a, replaces: [{name: a}]}}"),
        3, "descriptors[0].rate_limit.replaces[0]", "is this limit itself",
    ),
    (
        descriptor("{key: k, rate_limit: {unit: day, requests_per_unit: 1, algorithm: leaky}}"),
        3, "descriptors[0].rate_limit.algorithm", "must be fixed_window or token_bucket",
    ),
    ("domain: d\ndescriptors:\n  - key: k\n  - key: k\n", 4, "descriptors[1]", "'k' is there already"),
    ("domain: d\ndescriptors: [{key: a_b}, {key: a, value: b}]\n", 2, "descriptors[1]", "'a_b' is there"),
    (
        "domain: d\ndescriptors: [{key: a_b, value: c}, {key: a, value: b_c}]\n",
        2, "descriptors[1]", "'a_b_c' is there already",
    ),
    ("domain: d\ndescriptors: [{key: k, <<: 5}]\n", 2, "descriptors[0].<<", "must be a mapping, or a list"),
    ("domain: d\ndescriptors: [*gone]\n", 2, "", "no anchor '&gone'"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "line", "field", "problem"), MISTAKES)
def test_read__mistakes_are_reported_with_their_place(text: str, line: int, field: str, problem: str) -> None:
    """Each mistake of the original's checker, and what it ignores in silence."""
    found = only_mistake(text)
    assert found[:2] == (line, field)
    assert problem in found[2]


def test_read__all_mistakes_of_all_files_are_reported() -> None:
    """One pass corrects everything."""
    found = mistakes("domain: a\nx: 1\ny: 2\n", "domain: b\ndescriptors: [{}, {key: ''}]\n")
    assert [(file, line) for file, line, _, _ in found] == [
        ("0.yaml", 2), ("0.yaml", 3), ("1.yaml", 2), ("1.yaml", 2),
    ]  # fmt: skip


def test_read__latin_1_is_refused() -> None:
    """Text is UTF-8."""
    assert mistakes("domain: ä\n".encode("latin-1")) == [
        ("0.yaml", 1, "", "is not UTF-8 text; save it as UTF-8")
    ]


@pytest.mark.parametrize(
    "text",
    [
        "\ufeffdomain: d\r\ndescriptors:\r\n  - key: k\r\n    " + LIMIT + "\r\n",
        '{"domain": "d", "descriptors": [\n'
        '{"key": "k", "rate_limit": {"unit": "day", "requests_per_unit": 1}}]}',
        "---\ndomain: d\ndescriptors:\n  - &b {key: k, rate_limit: &day {unit: day, requests_per_unit: 1}}\n"
        "  - {<<: *b, key: j}\n  - {key: i, rate_limit: {<<: [*day], requests_per_unit: 2}}\n",
    ],
)
def test_read__other_forms_of_yaml(text: str) -> None:
    """A byte order mark, CRLF, JSON, anchors and merges."""
    limits = read_limits(text)
    limit = rule_of(limits, ("k", "x")).limit
    assert limit == Limit(Unit.DAY, 1)
    if "<<" in text:
        assert rule_of(limits, ("j", "x")).limit == limit
        assert rule_of(limits, ("i", "x")).limit == Limit(Unit.DAY, 2)


def test_read__one_domain_in_two_files() -> None:
    """An error that names both files, or one tree, in which duplicates are errors as well."""
    first, second = "domain: d\ndescriptors: [{key: a}]\n", "domain: d\ndescriptors: [{key: b}]\n"
    [(file, line, field, problem)] = mistakes(first, second)
    assert (file, line, field) == ("1.yaml", 1, "domain")
    assert "is also in 0.yaml" in problem
    assert mistakes(first, second, merges=True) == []
    assert [file for file, *_ in mistakes(first, second, first, merges=True)] == ["2.yaml"]


def test_read__what_is_odd_is_a_warning() -> None:
    """It loads in the original, and is reported here."""
    faults = FaultList("limits")
    reader = RateLimitReader(faults, lambda domain: Algorithm.FIXED_WINDOW, False)
    reader.read(
        b"domain: d\ndescriptors:\n"
        b"  - {key: a, rate_limit: {unit: day}}\n"
        b"  - {key: b, detailed_metric: true}\n"
        b"  - {key: c, value_to_metric: true}\n"
        b"  - {key: e, rate_limit: {unlimited: true, unit: never, requests_per_unit: 5}}\n",
        "f",
    )
    assert not faults
    assert [(warning.line, warning.field.rpartition(".")[2]) for warning in reader.warnings] == [
        (3, "rate_limit"), (4, "detailed_metric"), (5, "value_to_metric"), (6, "unit"),
        (6, "requests_per_unit"),
    ]  # fmt: skip
    assert isinstance(reader.warnings[0], FileFault)
