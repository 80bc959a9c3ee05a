"""The IP allowlist of an integration: helpful answers, and no lock-out without a warning."""

from __future__ import annotations

import pytest

from sidecar.domain.cidr import parse_address
from sidecar.domain.effective import in_force
from sidecar.domain.integrations import ALLOWLIST_ENTRIES_MAX, Integration
from sidecar.domain.lifecycle import commands as c
from sidecar.domain.lifecycle.allowlists import ENTRIES_MAX
from sidecar.domain.lifecycle.outcome import Facts, Outcome
from sidecar.domain.refusals import Code, RefusedError
from tests.administration import ANN, ID, NOW_US, active, apply, create

SEEN = Facts(addresses_seen=tuple(map(parse_address, ("192.0.2.1", "198.51.100.7", "2001:db8::1"))))


def put(*entries: str) -> c.SetAllowlist:
    """Set the allowlist to *entries*."""
    return c.SetAllowlist(integration_id=ID, entries=entries)


def add(*entries: str) -> c.AddAllowlistEntries:
    """Add *entries*."""
    return c.AddAllowlistEntries(integration_id=ID, entries=entries)


def remove(*entries: str) -> c.RemoveAllowlistEntries:
    """Remove *entries*."""
    return c.RemoveAllowlistEntries(integration_id=ID, entries=entries)


def off(**given: object) -> Integration:
    """A record whose allowlist is off and has no entries."""
    return apply(None, create(**given)).record


def refused(record: Integration, command: c.Command) -> RefusedError:
    """The refusal of *command*."""
    with pytest.raises(RefusedError) as caught:
        apply(record, command)
    return caught.value


def codes(outcome: Outcome) -> list[str]:
    """The codes of its notices."""
    return [notice.code for notice in outcome.notices]


def entries(record: Integration) -> list[str]:
    """The allowlist of *record* as text."""
    return [str(entry) for entry in record.ip_allowlist]


def test_allowlist__is_off_until_it_is_turned_on() -> None:
    """Entries alone restrict nothing; turned on, they do; turned off again, they are kept."""
    record = apply(off(), put("192.0.2.0/24")).record
    assert in_force(record, NOW_US).ip_allowlist == ()
    record = apply(record, c.EnableAllowlist(integration_id=ID)).record
    assert in_force(record, NOW_US).ip_allowlist == record.ip_allowlist
    record = apply(record, c.DisableAllowlist(integration_id=ID)).record
    assert (in_force(record, NOW_US).ip_allowlist, entries(record)) == ((), ["192.0.2.0/24"])


def test_enable__needs_an_entry() -> None:
    """An allowlist without entries would admit nobody, so it is refused."""
    assert refused(off(), c.EnableAllowlist(integration_id=ID)).code is Code.ALLOWLIST_EMPTY


def test_entries__all_mistakes_at_once_with_what_was_meant() -> None:
    """Each wrong entry is named by its index; host bits get both blocks that were probably meant."""
    error = refused(off(), put("192.0.2.0/24", "10.1.2.3/8", "10.0.0.0/64", "nonsense", "10.0.0.0/255.0.0.0"))
    assert [problem.field for problem in error.problems] == [
        "entries[1]",
        "entries[2]",
        "entries[3]",
        "entries[4]",
    ]
    assert "10.0.0.0/8 or 10.1.2.3/32" in error.problems[0].message
    assert "0 to 32" in error.problems[1].message
    assert "netmask" in error.problems[3].message


def test_entries__duplicates_are_kept_once() -> None:
    """Two spellings of one block are one entry, and a notice names it."""
    outcome = apply(off(), put("2001:db8::/32", "2001:DB8:0::/32"))
    assert entries(outcome.record) == ["2001:db8::/32"]
    assert codes(outcome) == ["duplicate"]
    assert outcome.notices[0].field == "entries[1]"


def test_entries__overlaps_are_kept_and_reported() -> None:
    """A covered entry may be meant, so it stays, with a word that it adds nothing."""
    outcome = apply(off(), put("10.0.0.0/8", "10.1.0.0/16"))
    assert entries(outcome.record) == ["10.0.0.0/8", "10.1.0.0/16"]
    assert codes(outcome) == ["overlap"]
    assert "10.1.0.0/16 is already covered by 10.0.0.0/8" in outcome.notices[0].message
    later = apply(apply(off(), put("10.1.0.0/16", "172.16.0.0/12")).record, add("10.0.0.0/8"))
    assert codes(later) == ["overlap"]


def test_entries__mixed_families_are_explained() -> None:
    """A list with both families says how they are matched; one family alone says nothing."""
    assert codes(apply(off(), put("10.0.0.0/8", "2001:db8::/32"))) == ["mixed_families"]
    assert codes(apply(off(), put("10.0.0.0/8", "172.16.0.0/12"))) == []
    assert entries(apply(off(), put("::ffff:10.0.0.0/104")).record) == ["10.0.0.0/8"]


@pytest.mark.parametrize(("entry", "family"), [("0.0.0.0/0", "IPv4"), ("::/0", "IPv6")])
def test_entries__that_let_everyone_in_are_reported(entry: str, family: str) -> None:
    """A block of everything defeats the list for one family."""
    outcome = apply(off(), put(entry))
    assert codes(outcome) == ["admits_all"]
    assert f"every {family} client" in outcome.notices[0].message


def test_entries__at_most_fifty_and_how_to_get_there() -> None:
    """The bound is reported with the number that merging neighbors would leave."""
    neighbors = tuple(f"10.0.0.{number}/32" for number in range(ALLOWLIST_ENTRIES_MAX + 1))
    error = refused(off(), put(*neighbors))
    assert error.code is Code.TOO_MANY
    assert "leaves 4" in error.problems[0].message  # .0/27, .32/28, .48/31 and .50/32
    apart = tuple(f"10.0.{number}.0/32" for number in range(ALLOWLIST_ENTRIES_MAX + 1))
    assert "leaves" not in refused(off(), put(*apart)).problems[0].message
    full = apply(off(), put(*apart[:ALLOWLIST_ENTRIES_MAX])).record
    assert refused(full, add("192.0.2.1")).code is Code.TOO_MANY
    assert refused(off(), put(*("10.0.0.1",) * (ENTRIES_MAX + 1))).code is Code.TOO_MANY


def test_add__known_entries_are_no_change() -> None:
    """Adding what is there changes nothing and says so; new ones go to the end."""
    outcome = apply(active(), add("192.0.2.0/25"))
    assert not outcome.is_change
    assert codes(outcome) == ["entry_known"]
    assert entries(apply(active(), add("10.0.0.1")).record) == [
        "192.0.2.0/25",
        "192.0.2.128/25",
        "10.0.0.1/32",
    ]


def test_remove__as_they_stand() -> None:
    """An entry is removed by its block; one that only covers it is named."""
    assert entries(apply(active(), remove("192.0.2.0/25")).record) == ["192.0.2.128/25"]
    error = refused(active(), remove("192.0.2.0/26", "10.0.0.0/8"))
    assert [problem.code for problem in error.problems] == [Code.ENTRY_UNKNOWN] * 2
    assert "covered by 192.0.2.0/25" in error.problems[0].message


@pytest.mark.parametrize("command", [put(), remove("192.0.2.0/25", "192.0.2.128/25")])
def test_allowlist__never_opens_by_losing_its_last_entry(command: c.Command) -> None:
    """An enabled allowlist without entries would be off and admit everyone: refused, never done silently."""
    assert refused(active(), command).code is Code.ALLOWLIST_EMPTY
    disabled = apply(active(), c.DisableAllowlist(integration_id=ID)).record
    assert entries(apply(disabled, command).record) == []


def test_lock_out__warns_when_turned_on() -> None:
    """Addresses seen in the last hour that would be refused are named before it is too late to be calm."""
    record = apply(off(), put("192.0.2.0/24")).record
    outcome = apply(record, c.EnableAllowlist(integration_id=ID), ANN, facts=SEEN)
    assert codes(outcome) == ["lock_out"]
    message = outcome.notices[0].message
    assert "2 of the 3 addresses" in message
    assert "198.51.100.7, 2001:db8::1" in message
    assert "IPv6 clients IPv6 ones" in message


def test_lock_out__warns_with_every_change_of_an_enabled_list() -> None:
    """Setting and removing entries can lock out as well; removing the stale entry undoes it."""
    seen = Facts(addresses_seen=(parse_address("192.0.2.1"),))
    assert codes(apply(active(), put("10.0.0.0/8"), facts=seen)) == ["lock_out"]
    assert codes(apply(active(), remove("192.0.2.0/25"), facts=seen)) == ["lock_out"]
    assert codes(apply(active(), add("10.0.0.0/8"), facts=seen)) == []
    disabled = apply(active(), c.DisableAllowlist(integration_id=ID)).record
    assert codes(apply(disabled, put("10.0.0.0/8"), facts=seen)) == []


def test_lock_out__names_a_few_and_counts_the_rest() -> None:
    """The warning stays readable however many addresses there are."""
    seen = Facts(addresses_seen=tuple(parse_address(f"10.0.0.{number}") for number in range(40)))
    message = apply(active(), add("192.0.2.1"), facts=seen).notices[-1].message
    assert "40 of the 40" in message
    assert "and 35 more" in message
