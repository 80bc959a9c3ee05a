"""
What the former build stored, kept in former.json for tests: `python -m tests.upgrade.stored` writes it again.

The file has the registry in SQLite (as SQL) and in Redis (as commands), buckets, and the example files of
that build, with the API keys that it issued. Texts are latin-1, so that any byte survives.
"""

from __future__ import annotations

import json
import sqlite3
import subprocess
import tempfile
import time
from contextlib import closing
from pathlib import Path
from typing import Any

from tests.redis_servers import RedisServer
from tests.upgrade.builds import FORMER, install
from tests.upgrade.fleet import InstalledSidecar, UpgradePlace

FILE = Path(__file__).with_name("former.json")
EXAMPLES = ("sidecar.yaml", "registry.yaml")
BURST, TAKEN = 5, 3
"""The bucket of the integration 'limited', and how many tokens were taken."""
_HEAD = ("application_id", "user_version")


def stored() -> dict[str, Any]:
    """The content of former.json."""
    content: dict[str, Any] = json.loads(FILE.read_text())
    return content


def put_sqlite(content: dict[str, Any], path: Path) -> None:
    """Write the SQLite file as the former build left it."""
    with closing(sqlite3.connect(path)) as database:
        database.executescript(content["sql"])
        for name in _HEAD:
            database.execute(f"PRAGMA {name} = {int(content[name])}")
    path.chmod(0o600)


def put_redis(content: dict[str, Any], client: Any) -> None:
    """Write the keys as the former build left them, without their expiry."""
    for command in content["commands"]:
        client.execute_command(*(word.encode("latin-1") for word in command))


def _read_sqlite(path: Path) -> dict[str, Any]:
    with closing(sqlite3.connect(path)) as database:
        head = {name: database.execute(f"PRAGMA {name}").fetchone()[0] for name in _HEAD}
        return {**head, "sql": "\n".join(database.iterdump())}


def _read_redis(client: Any) -> dict[str, Any]:
    """The commands that write every key again."""
    commands: list[list[bytes]] = []
    for key in sorted(client.scan_iter()):
        kind = client.type(key)
        if kind == b"string":
            commands.append([b"SET", key, client.get(key)])
        elif kind == b"hash":
            commands.append([b"HSET", key, *(item for pair in client.hgetall(key).items() for item in pair)])
        elif kind == b"set":
            commands.append([b"SADD", key, *sorted(client.smembers(key))])
        elif kind == b"zset":
            for member, score in client.zrange(key, 0, -1, withscores=True):
                commands.append([b"ZADD", key, repr(score).encode(), member])
        else:
            assert kind == b"stream", (key, kind)
            for id, fields in client.xrange(key):
                commands.append([b"XADD", key, id, *(item for pair in fields.items() for item in pair)])
    return {"commands": [[word.decode("latin-1") for word in command] for command in commands]}


def _fill(place: UpgradePlace, command: Path) -> dict[str, str]:
    """Let the former build make integrations, take tokens and suspend; return the API keys."""
    place.token = place.run(
        command, "admin", "bootstrap", "--id", "ann", "--config", str(place.config)
    ).strip()
    with InstalledSidecar(command, place, "former", takes_over=False):
        place.create(command, "limited", 1, BURST)
        place.create(command, "leaked", 60, BURST)
        place.run(command, "suspend", "leaked", "--reason", "INC-1", "--yes")
        assert place.reasons("limited", TAKEN) == ["ok"] * TAKEN
    return place.keys


def main() -> None:
    """Build the former version, let it store, and write former.json."""
    with tempfile.TemporaryDirectory(prefix="sidecar-stored-") as name:
        folder = Path(name)
        command = install(FORMER, folder / "former")
        in_file = UpgradePlace(folder / "sqlite", registry="sqlite:registry.sqlite")
        content: dict[str, Any] = {"commit": FORMER, "sqlite": {"api_keys": _fill(in_file, command)}}
        content["sqlite"] |= _read_sqlite(in_file.folder / "registry.sqlite")
        server = RedisServer(folder / "redis").start()
        try:
            in_redis = UpgradePlace(folder / "place", store=server.url)
            content["redis"] = {"api_keys": _fill(in_redis, command), "stored_at_us": time.time_ns() // 1_000}
            content["redis"] |= _read_redis(server.client)
        finally:
            server.stop()
    content["examples"] = {path: _example(path) for path in EXAMPLES}
    FILE.write_text(json.dumps(content, indent=1) + "\n")


def _example(path: str) -> str:
    command = ["git", "show", f"{FORMER}:deploy/example/{path}"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


if __name__ == "__main__":
    main()
