"""The cost of a call of take.lua in Redis: a fixed part, and a part per entry."""

from __future__ import annotations

import socket
import tempfile
from pathlib import Path

import hiredis

from loadtest.bench.processes import BenchError
from loadtest.bench.redis_sides import standalone
from loadtest.bench.report import Row, Section
from loadtest.bench.workload import BURST
from loadtest.redis_servers import LOOPBACK, RedisServer
from sidecar.domain.bucket import BucketSet, Quota
from sidecar.stores.redis.keys import KeySpace
from sidecar.stores.redis.scripts import TAKE
from sidecar.stores.redis.take_call import CompiledSet, Group, encode_call

ENTRIES = (1, 4, 16, 64)
CALLS = {1: 20_000, 4: 10_000, 16: 4_000, 64: 1_500}
REPLY_TIMEOUT_S = 20.0


def run() -> list[Section]:
    """Measure calls of several sizes, without and with the check of the integration's generation."""
    with tempfile.TemporaryDirectory() as folder, standalone(Path(folder)) as server:
        costs = {
            checks: [_cost_us(server, entries, checks) for entries in ENTRIES] for checks in (False, True)
        }
    rows = [
        Row(
            f"{entries} {'entry' if entries == 1 else 'entries'}",
            f"{plain:.1f} µs a call",
            f"{checked:.1f} µs with the generation checked",
            f"{plain / entries:.1f} / {checked / entries:.1f} µs an entry",
        )
        for entries, plain, checked in zip(ENTRIES, costs[False], costs[True], strict=True)
    ]
    return [
        Section(
            "What a script call costs Redis",
            "Processor time of redis-server from INFO, one call at a time over loopback TCP, reading the"
            " command and writing the reply included. An entry is a bucket with any number of equal takes;"
            " with the integrations in Redis each entry also checks its integration's generation.",
            rows,
        )
    ]


def _cost_us(server: RedisServer, entries: int, checks_generation: bool) -> float:
    """Return the server's µs for one call with *entries* of different buckets."""
    keys = KeySpace("cost:")
    owners = [f"bench-{number:05}" for number in range(entries)]
    sets = [BucketSet(owner, 1, (owner,), (Quota(6_000, BURST),)) for owner in owners]
    groups = [Group(CompiledSet(buckets, keys, checks_generation)) for buckets in sets]
    for owner, group in zip(owners, groups, strict=True):
        server.client.set(keys.generation(owner), 1)
        group.asked = 1
    call, calls = encode_call(groups), CALLS[entries]
    with socket.create_connection((LOOPBACK, server.port), REPLY_TIMEOUT_S) as connection:
        _ask(connection, TAKE.load)
        for _ in range(calls // 10):
            _ask(connection, call)
        before_s = server.cpu_s()
        for _ in range(calls):
            _ask(connection, call)
        return (server.cpu_s() - before_s) * 1e6 / calls


def _ask(connection: socket.socket, command: bytes) -> None:
    reader = hiredis.Reader()
    connection.sendall(command)
    reply: object = False
    while reply is False:
        data = connection.recv(65_536)
        if not data:
            raise BenchError("Redis closed the connection")
        reader.feed(data)
        reply = reader.gets()
    if isinstance(reply, hiredis.ReplyError) or (isinstance(reply, list) and -1 in reply):
        raise BenchError(f"take.lua did not take: {str(reply)[:200]}")
