"""Mistakes in files: reported together, up to a bound."""

from __future__ import annotations

import pytest

from sidecar.sources.file_faults import (
    FAULTS_SHOWN_MAX,
    PROBLEM_CHARS_MAX,
    FaultList,
    FileFault,
    FileFaultsError,
    meant_key,
    quoted,
    unknown_key,
)


def test_file_fault__names_file_line_field_and_problem() -> None:
    """The order is that of compilers, so editors can jump to it."""
    assert str(FileFault("a.yaml", 3, "x.y", "is odd; mend it")) == "a.yaml:3: x.y: is odd; mend it"
    assert str(FileFault("a.yaml", None, "", "cannot be read")) == "a.yaml: cannot be read"


def test_fault_list__keeps_the_first_and_counts_all() -> None:
    """Of a thousand mistakes twenty are reported, and the total."""
    faults = FaultList("a.yaml")
    for line in range(1, 1_001):
        faults.add(line, "x", "is odd")
    with pytest.raises(FileFaultsError) as caught:
        faults.raise_any()
    lines = str(caught.value).splitlines()
    assert len(lines) == FAULTS_SHOWN_MAX + 1
    assert lines[0] == "a.yaml:1: x: is odd"
    assert lines[-1] == "... and 980 more; fix these first"
    assert (len(faults), caught.value.total) == (1_000, 1_000)


def test_fault_list__none_is_no_error() -> None:
    """Without mistakes nothing is raised."""
    faults = FaultList("a.yaml")
    faults.raise_any()
    assert len(faults) == 0


def test_fault_list__takes_over_those_of_another_file() -> None:
    """Mistakes of several files count together, also those that were not kept."""
    inner = FaultList("b.yaml")
    for line in range(30):
        inner.add(line, "", "is odd")
    faults = FaultList("a.yaml")
    faults.add(1, "", "is odd")
    with pytest.raises(FileFaultsError) as caught:
        inner.raise_any()
    faults.extend(caught.value)
    assert len(faults) == 31
    assert [fault.file for fault in faults.faults] == ["a.yaml"] + ["b.yaml"] * (FAULTS_SHOWN_MAX - 1)


def test_fault_list__a_problem_has_a_bound() -> None:
    """What quotes a megabyte of the file is cut."""
    faults = FaultList("a.yaml")
    faults.add(1, "", "x" * 1_000_000)
    assert len(faults.faults[0].problem) == PROBLEM_CHARS_MAX + len("...")


def test_quoted__is_one_bounded_line() -> None:
    """Line ends are escaped, length is bounded."""
    assert quoted("a\nb") == r"'a\nb'"
    assert len(quoted("x" * 10_000)) < 100


def test_unknown_key__suggests_what_was_meant() -> None:
    """A typo gets the key that it resembles, anything else the list."""
    assert unknown_key("scopse", ("scopes", "name")) == "unknown key 'scopse'; did you mean 'scopes'?"
    assert unknown_key("zzz", ("scopes", "name")) == "unknown key 'zzz'; known here: scopes, name"
    assert meant_key("x" * 1_000_000, ("scopes", "name")) is None
