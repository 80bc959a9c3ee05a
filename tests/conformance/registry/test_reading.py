"""The registry's contract: lists, searches, pages, and following the changes."""

from __future__ import annotations

import asyncio

import pytest

from sidecar.domain.administrators import SetRole
from sidecar.domain.changes import SIDECAR_LIFETIME_US, Committed, Position, Revision
from sidecar.domain.integrations import Status
from sidecar.domain.lifecycle import commands as c
from sidecar.domain.refusals import Code, RefusedError
from sidecar.domain.roles import Role
from sidecar.stores.registry.protocol import CHANGES_MAX, PAGE_MAX, REQUESTS_MAX, Changes, ListQuery
from tests.administration import BOB, ID, create, credential, request, set_up
from tests.conformance.registry.registry_harness import RegistryHarness
from tests.waiting import PATIENCE_S


def listed(harness: RegistryHarness, **query: object) -> list[str]:
    """The ids of a whole list, page by page."""
    ids: list[str] = []
    after = ""
    while True:
        page = harness.run(harness.registry.list(ListQuery(**{"after": after, **query})))  # type: ignore[arg-type]
        ids += [record.id for record in page.records]
        after = page.next_after
        if not after:
            return ids


def fill(harness: RegistryHarness, count: int) -> list[str]:
    """Create *count* integrations at once; their ids in order."""
    ids = [f"i{number:05}" for number in range(count)]
    for first in range(0, count, REQUESTS_MAX):
        batch = [request(create(id, name=f"Name {id}")) for id in ids[first : first + REQUESTS_MAX]]
        assert all(
            isinstance(result, Committed) for result in harness.run(harness.registry.apply_many(batch))
        )
    return ids


@pytest.mark.parametrize("limit", [1, 3, 7, 8, 100])
def test_list__every_page_size_gives_every_integration_once(harness: RegistryHarness, limit: int) -> None:
    """Pages follow one another by the cursor, in order of the ids, without gaps and repeats."""
    ids = fill(harness, 7)
    assert listed(harness, limit=limit) == ids
    assert len(harness.run(harness.registry.list(ListQuery(limit=limit))).records) == min(limit, 7)


def test_list__a_page_in_hand_stays_right_while_others_write(harness: RegistryHarness) -> None:
    """Integrations that come and go between two pages never hide another one."""
    fill(harness, 6)
    page = harness.run(harness.registry.list(ListQuery(limit=3)))
    harness.apply(c.DeleteIntegration(integration_id="i00001"))
    harness.apply(c.DeleteIntegration(integration_id=page.next_after))
    harness.apply(create("a-new-one"))
    assert listed(harness, limit=3, after=page.next_after) == ["i00003", "i00004", "i00005"]


def test_list__search_and_status(harness: RegistryHarness) -> None:
    """The search looks into ids, names, people and credential ids, whatever the case; status narrows it."""
    harness.apply(create("one", name="Ärzte GmbH", contact="Ops@one.example"))
    harness.apply(create("two", owner="Platform Team", third_party_manager="Helpers & Co"))
    harness.apply(create("three", credentials=(credential("AbC123"),)))
    harness.apply(c.Suspend(integration_id="two", reason="why"))
    for text, ids in {
        "ONE": ["one"],
        "ärzte": ["one"],
        "OPS@": ["one"],
        "platform team": ["two"],
        "helpers &": ["two"],
        "abc123": ["three"],
        "e": ["one", "three", "two"],
        "%": [],
        "_": [],
        "": ["one", "three", "two"],
    }.items():
        assert listed(harness, search=text) == ids
    assert listed(harness, status=Status.SUSPENDED) == ["two"]
    assert listed(harness, status=Status.ACTIVE, search="e") == ["one", "three"]
    assert listed(harness, status=Status.SUSPENDED, search="one") == []


@pytest.mark.parametrize(
    ("query", "field"),
    [
        (ListQuery(limit=0), "limit"),
        (ListQuery(limit=PAGE_MAX + 1), "limit"),
        (ListQuery(after="NOT AN ID"), "after"),
    ],
)
def test_list__limits_and_cursors_are_checked(harness: RegistryHarness, query: ListQuery, field: str) -> None:
    """A page is bounded, and a cursor that is none is refused."""
    with pytest.raises(RefusedError) as caught:
        harness.run(harness.registry.list(query))
    assert (caught.value.code, caught.value.field) == (Code.INVALID_VALUE, field)


def test_load_all__everything_and_the_revision_it_is_at(harness: RegistryHarness) -> None:
    """A reader that starts from this view and follows from its revision misses nothing."""
    ids = fill(harness, 5)
    view = harness.run(harness.registry.load_all())
    assert [record.id for record in view.records] == ids
    assert view.revision == harness.run(harness.registry.revision())
    assert harness.run(harness.registry.changes_since(view.revision)) == Changes(view.revision)


def test_changes_since__what_changed_and_what_ended(harness: RegistryHarness) -> None:
    """Changed integrations come as they are now, once each; deleted ones by their ids."""
    ids = fill(harness, 4)
    since = harness.run(harness.registry.revision())
    harness.apply(c.SetRateLimit(integration_id=ids[1], rate_limit_rpm=7))
    harness.apply(c.SetRateLimit(integration_id=ids[1], rate_limit_rpm=8))
    harness.apply(c.DeleteIntegration(integration_id=ids[2]))
    made = harness.apply(create("new"))
    changes = harness.run(harness.registry.changes_since(since))
    assert {record.id: record.rate_limit_rpm for record in changes.records} == {ids[1]: 8, "new": 60}
    assert changes.deleted == (ids[2],)
    assert not changes.is_reset
    assert not changes.has_more
    assert changes.revision == harness.run(harness.registry.revision())
    assert made.position is not None
    assert changes.revision.covers(made.position)
    assert not since.covers(made.position)


def test_changes_since__goes_on_where_it_stopped(harness: RegistryHarness) -> None:
    """More changes than one answer holds come in several, and none is lost between them."""
    since = harness.run(harness.registry.revision())
    ids = fill(harness, CHANGES_MAX + 5)
    seen: list[str] = []
    while True:
        changes = harness.run(harness.registry.changes_since(since))
        assert len(changes.records) <= CHANGES_MAX
        seen += [record.id for record in changes.records]
        since = changes.revision
        if not changes.has_more:
            break
    assert sorted(seen) == ids
    assert since == harness.run(harness.registry.revision())


@pytest.mark.parametrize("revision", [Revision((10_000_000,)), Revision((0,) * 1_000)])
def test_changes_since__a_revision_it_never_had(harness: RegistryHarness, revision: Revision) -> None:
    """After a restored backup, or from another registry, the reader must load all."""
    assert harness.run(harness.registry.changes_since(revision)).is_reset


def test_changes_since__from_the_beginning(harness: RegistryHarness) -> None:
    """From the zero revision every integration comes."""
    ids = fill(harness, 3)
    zero = Revision(tuple(0 for _ in harness.run(harness.registry.revision()).sequences))
    assert sorted(record.id for record in harness.run(harness.registry.changes_since(zero)).records) == ids


@pytest.mark.parametrize("by_another_process", [False, True])
def test_changes_since__waits_for_a_change(harness: RegistryHarness, by_another_process: bool) -> None:
    """A waiting reader is woken by a change, also by one that another process makes."""

    async def wait() -> Changes:
        since = await harness.registry.revision()
        waiting = asyncio.create_task(harness.registry.changes_since(since, PATIENCE_S / 2))
        await harness.registry.revision()  # the reader has looked once and waits by now
        assert not waiting.done()
        async with harness.another() as other:
            await (other if by_another_process else harness.registry).apply(request(create()))
        return await waiting

    assert [record.id for record in harness.run(wait()).records] == [ID]


def test_changes_since__gives_up_at_its_timeout(harness: RegistryHarness) -> None:
    """Without a change the answer is empty, at the same revision."""
    revision = harness.run(harness.registry.revision())
    assert harness.run(harness.registry.changes_since(revision, timeout_s=0.01)) == Changes(revision)


def test_changes_since__changes_of_administrators_move_the_revision_alone(harness: RegistryHarness) -> None:
    """The revision counts every entry on record, so that a confirmation covers them too."""
    since = harness.run(harness.registry.revision())
    made = harness.administer(SetRole(administrator_id="olli", role=Role.AUDITOR))
    changes = harness.run(harness.registry.changes_since(since))
    assert (changes.records, changes.deleted) == ((), ())
    assert made.entry is not None
    assert changes.revision.covers(Position(made.entry.chain, made.entry.sequence))


def test_sidecars__announce_and_are_forgotten(harness: RegistryHarness) -> None:
    """Live sidecars report their revision; one that falls silent no longer counts."""
    harness.apply(set_up())
    revision = harness.run(harness.registry.revision())
    harness.run(harness.registry.announce("s1", Revision((0,) * len(revision.sequences))))
    harness.clock.advance(us=SIDECAR_LIFETIME_US // 2)
    harness.run(harness.registry.announce("s2", revision))
    harness.run(harness.registry.announce("s1", revision))
    live = harness.run(harness.registry.live_sidecars())
    assert [(sidecar.id, sidecar.revision) for sidecar in live] == [("s1", revision), ("s2", revision)]
    harness.clock.advance(us=SIDECAR_LIFETIME_US // 2)
    harness.run(harness.registry.announce("s1", revision))
    harness.clock.advance(us=SIDECAR_LIFETIME_US // 2)
    assert [sidecar.id for sidecar in harness.run(harness.registry.live_sidecars())] == ["s1"]


def test_sidecars__leave_no_trace_on_record(harness: RegistryHarness) -> None:
    """A heartbeat is no change of the registry."""
    revision = harness.run(harness.registry.revision())
    harness.run(harness.registry.announce("s1", revision))
    assert harness.run(harness.registry.revision()) == revision


def test_reads__never_show_half_a_change(harness: RegistryHarness) -> None:
    """Anyone who reads while others write sees a record of one generation, and never an older one again."""
    harness.apply(create())

    async def race() -> list[tuple[int, int]]:
        async with harness.another() as other:

            async def write() -> None:
                for number in range(40):
                    await other.apply(
                        request(c.SetRateLimit(integration_id=ID, rate_limit_rpm=number + 100), BOB)
                    )

            writing = asyncio.create_task(write())
            seen = []
            while not writing.done():
                record = await harness.registry.get(ID)
                assert record is not None
                seen.append((record.generation, record.rate_limit_rpm))
            await writing
            return seen

    seen = harness.run(race())
    assert seen == sorted(seen)
    assert all(limit == 60 if generation == 1 else limit == generation + 98 for generation, limit in seen)
    assert harness.get(ID).generation == 41
