"""Kill -9 while a process writes to the registry in Redis: a change is whole or absent, and made once."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial

import pytest

from tests.fault.registry.test_kill import line_from
from tests.fault.registry.writes import WRITES
from tests.waiting import PATIENCE_S, eventually

from .kept import Content, Place, Shelf, is_whole_or_absent, repeated, verified, with_registry

MESSAGES_MAX = 60
"""A write with more messages than this is not what it was."""
CONNECTING = 7
"""The messages in which a link is made ready; nothing is written before the eighth."""
NAMES = (
    "integration.create", "integration.suspend", "integration.reactivate", "credential.rotate",
    "webhook_secret.generate", "apply_many", "admin.bootstrap", "admin.create",
)  # fmt: skip
"""Writes that differ in what they send: all others go the way of a suspension."""
Kill = Callable[[Place, str, int, bool], bool]


@pytest.fixture(scope="module")
def victim() -> Iterator[subprocess.Popen[bytes]]:
    """The program that makes processes which die."""
    program = [sys.executable, "-m", "tests.fault.registry_redis.victim"]
    with subprocess.Popen(program, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0) as process:
        assert process.stdin is not None
        yield process
        process.stdin.close()
        assert process.wait(PATIENCE_S) == 0


@pytest.fixture
def kill_at(victim: subprocess.Popen[bytes], shelf: Shelf) -> Kill:
    """
    Makes a write in a process that is killed after its n-th message to Redis; False = it lived.

    Returns when the server is done with what the dead process had sent.
    """
    assert victim.stdin is not None and victim.stdout is not None
    stdin, stdout = victim.stdin, victim.stdout

    def ask(place: Place, name: str, message: int, is_half: bool) -> bool:
        clients = shelf.clients
        url = place.url_text(shelf.port)
        job = {"url": url, "name": name, "message": message, "is_half": is_half}
        stdin.write(json.dumps(job).encode() + b"\n")
        was_killed = bool(json.loads(line_from(stdout)))
        eventually(lambda: shelf.clients <= clients, PATIENCE_S, "the server notices the death")
        return was_killed

    return ask


def prepared_and_written(name: str, shelf: Shelf, runner: asyncio.Runner) -> tuple[Place, Content]:
    """A registry before a write, and what it holds after it."""
    prepared, written = shelf.place(name), shelf.place(name)
    prepare, write = WRITES[name]
    runner.run(with_registry(prepared.url(shelf.port), prepare))
    prepared.copy_to(written)
    runner.run(with_registry(written.url(shelf.port), write))
    for place in (prepared, written):
        assert runner.run(with_registry(place.url(shelf.port), verified))
    return prepared, written.content()


@pytest.mark.parametrize("name", NAMES)
def test_kill__after_every_message_of_every_write(
    name: str, shelf: Shelf, runner: asyncio.Runner, kill_at: Kill
) -> None:
    """Whatever a dead process had sent, its change is whole or absent; who repeats it makes it once."""
    prepared, after = prepared_and_written(name, shelf, runner)
    before = prepared.content()
    assert after != before
    seen = []
    for message in range(0 if name == NAMES[0] else CONNECTING, MESSAGES_MAX):
        place = prepared.copy_to(shelf.place(name))
        was_killed = kill_at(place, name, message, False)
        left = place.content()
        assert is_whole_or_absent(left, before, after)
        seen.append(left)
        url = place.url(shelf.port)
        if left not in (before, after):  # those two are verified; this is some partitions of each
            assert runner.run(with_registry(url, verified))
        runner.run(with_registry(url, partial(repeated, write=WRITES[name][1])))
        assert place.content() == after
        place.clear()
        if not was_killed:
            break
    else:
        pytest.fail("the write never ended")
    assert len(seen) > 4, "no message of the write was seen"
    assert (seen[0], seen[-1]) == (before, after)


@pytest.mark.parametrize("name", ["credential.issue", "apply_many"])
def test_kill__in_the_middle_of_a_message(
    name: str, shelf: Shelf, runner: asyncio.Runner, kill_at: Kill
) -> None:
    """Half a command is none: nothing of it is carried out."""
    prepared, after = prepared_and_written(name, shelf, runner)
    before = prepared.content()
    for message in range(CONNECTING, MESSAGES_MAX):
        place = prepared.copy_to(shelf.place(name))
        was_killed = kill_at(place, name, message, True)
        left = place.content()
        assert is_whole_or_absent(left, before, after)
        place.clear()
        if not was_killed:
            assert left == after
            break
    else:
        pytest.fail("the write never ended")
