"""`check-config` and `serve` refuse the same configurations, with the same words."""

from __future__ import annotations

import itertools
import json
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from sidecar.process.checking import check
from sidecar.sources.file_faults import FileFaultsError
from sidecar.stores.registry.sqlite.file import open_database
from sidecar.transports.server import TlsFiles
from tests.certificates import Authority, write
from tests.redis_servers import RedisServer, free_port, shared
from tests.unit.cli.test_cli import run

SERVE_EACH = """
import json, os, sys
import typer.main
from sidecar.cli.root import app
from sidecar.process import control_plane, run, serve, wiring
from sidecar.process.supervisor import supervisor
from sidecar.transports import fast
command = typer.main.get_command(app)

def served(path):
    out, into = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.dup2(into, 1)
        os.dup2(into, 2)
        command(["serve", "--config", path])
    os.close(into)
    printed = os.fdopen(out).read()
    return {"printed": printed, "code": os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])}

print(json.dumps({path: served(path) for path in sys.argv[1:]}))
"""
"""Serves the configurations that it is given, each in a separate process; what is imported is shared."""
TIMEOUT_S = 60
LISTEN = "listen: {grpc: '127.0.0.1:0', admin: []}\n"
DATABASE = "registry: sqlite:r.sqlite\n"


def database(folder: Path) -> Path:
    """A registry in SQLite."""
    open_database(folder / "r.sqlite").close()
    return folder / "r.sqlite"


def loose_mode(folder: Path) -> str:
    """A registry that everybody may read."""
    database(folder).chmod(0o644)
    return DATABASE + LISTEN


def later_version(folder: Path) -> str:
    """A registry of a later program."""
    with closing(sqlite3.connect(database(folder))) as connection:
        connection.execute("PRAGMA user_version = 99")
    return DATABASE + LISTEN


def emptied(folder: Path) -> str:
    """A registry that was truncated."""
    database(folder).write_bytes(b"")
    return DATABASE + LISTEN


def lost(folder: Path) -> str:
    """A registry file that was removed; its key is there."""
    (folder / "r.sqlite.key").touch()
    return DATABASE + LISTEN


def other_database(folder: Path) -> str:
    """A SQLite file of another program."""
    (folder / "r.sqlite").touch(0o600)
    with closing(sqlite3.connect(folder / "r.sqlite")) as connection:
        connection.execute("CREATE TABLE theirs (a)")
    return DATABASE + LISTEN


def missing_folder(folder: Path) -> str:
    """No folder for the registry."""
    return "registry: sqlite:no/r.sqlite\n" + LISTEN


def loose_key(folder: Path) -> str:
    """A key file that everybody may read."""
    (folder / "keys").write_text("x")
    (folder / "keys").chmod(0o604)
    return f"webhook_secret_key_file: keys\n{DATABASE}listen: {{grpc: '127.0.0.1:0', admin: '127.0.0.1:0'}}\n"


def missing_key(folder: Path) -> str:
    """No key file."""
    return f"webhook_secret_key_file: keys\n{DATABASE}listen: {{grpc: '127.0.0.1:0', admin: '127.0.0.1:0'}}\n"


def tls(folder: Path) -> str:
    """A listener with TLS files."""
    return "listen: {grpc: {address: '127.0.0.1:0', tls: {cert: a.crt, key: a.key}}, admin: []}\n"


def mismatched(folder: Path) -> str:
    """A key that is not the certificate's."""
    authority = Authority("test")
    write(TlsFiles(folder / "a.crt", folder / "b.key"), authority.issue("server"))
    write(TlsFiles(folder / "b.crt", folder / "a.key"), authority.issue("server"))
    return tls(folder)


def long_path(folder: Path) -> str:
    """A Unix socket whose path the kernel does not take."""
    return f"listen: {{grpc: 'unix:/{120 * 'x'}', admin: []}}\n"


def socket_folder(folder: Path) -> str:
    """A Unix socket in a folder that is not there."""
    return f"listen: {{grpc: 'unix:{folder}/no/a.sock', admin: []}}\n"


def socket_taken(folder: Path) -> str:
    """A Unix socket where another file is."""
    (folder / "a").touch()
    return f"listen: {{grpc: 'unix:{folder}/a', admin: []}}\n"


def foreign_address(folder: Path) -> str:
    """An address that this machine does not have."""
    return "listen: {grpc: '192.0.2.1:9191', admin: []}\n"


def same_address(folder: Path) -> str:
    """Two listeners at one address."""
    return "listen: {grpc: '127.0.0.1:9191', admin: '127.0.0.1:9191'}\n"


def open_admin(folder: Path) -> str:
    """Tokens in the clear."""
    return DATABASE + "listen: {grpc: '127.0.0.1:0', admin: '0.0.0.0:0'}\n"


def unshared(folder: Path) -> str:
    """Workers that do not share a store."""
    return "workers: 2\n" + LISTEN


REFUSED: tuple[Callable[[Path], str], ...] = (
    loose_mode, later_version, emptied, lost, other_database, missing_folder, loose_key, missing_key, tls,
    mismatched, long_path, socket_folder, socket_taken, foreign_address, same_address, open_admin, unshared,
)  # fmt: skip


def test_check__refuses_what_serve_refuses(tmp_path: Path) -> None:
    """Whatever `serve` refuses at its start, the check refuses before, in the same words."""
    problems = {}
    for setup in REFUSED:
        folder = tmp_path / setup.__name__
        folder.mkdir()
        path = folder / "sidecar.yaml"
        path.write_text(setup(folder))
        files = sorted(folder.iterdir())
        with pytest.raises(FileFaultsError) as caught:
            check(path)
        assert sorted(folder.iterdir()) == files
        problems[str(path)] = caught.value.faults[0].problem
    command = [sys.executable, "-c", SERVE_EACH, *problems]
    served = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S, check=True)
    reported = json.loads(served.stdout)
    assert [path for path, problem in problems.items() if problem not in reported[path]["printed"]] == []
    assert [path for path in problems if reported[path]["code"] not in (1, 2)] == []


def test_check__an_expired_certificate(tmp_path: Path) -> None:
    """Every verifying client refuses it, so the check does; `serve` warns, and serves who does not verify."""
    now = datetime.now(UTC)
    authority = Authority("test")
    identity = authority.issue("server", ends=now - timedelta(days=1))
    write(TlsFiles(tmp_path / "a.crt", tmp_path / "a.key"), identity)
    path = tmp_path / "sidecar.yaml"
    path.write_text(tls(tmp_path))
    with pytest.raises(FileFaultsError, match=r"a\.crt expired at .*: renew it"):
        check(path)


def test_check__names_the_sockets_of_workers(tmp_path: Path) -> None:
    """Several workers have a Unix socket each: anyone who names the file sees their names."""
    path = tmp_path / "sidecar.yaml"
    path.write_text(
        f"store: redis://127.0.0.1:1\nworkers: 2\nlisten: {{grpc: 'unix:{tmp_path}/a.sock', admin: []}}"
    )
    [warning] = check(path).warnings
    assert f"the sockets are {tmp_path}/a.0.sock to {tmp_path}/a.1.sock" in warning.problem


def test_check__a_path_that_is_too_long_for_a_worker(tmp_path: Path) -> None:
    """The worker's number makes the name longer than the configuration's."""
    path = tmp_path / "sidecar.yaml"
    socket = f"/tmp/{(107 - 5) * 'x'}"
    path.write_text(f"store: redis://127.0.0.1:1\nworkers: 2\nlisten: {{grpc: 'unix:{socket}', admin: []}}")
    with pytest.raises(FileFaultsError, match="has 109 bytes"):
        check(path)


def test_check__a_bomb_of_aliases(tmp_path: Path) -> None:
    """A few hundred bytes cannot hold up the check: aliases count as all that they repeat."""
    path = tmp_path / "sidecar.yaml"
    lines = ["a: &a [x, x, x, x, x, x, x, x, x]"]
    lines += [f"{b}: &{b} [{', '.join(9 * [f'*{a}'])}]" for a, b in itertools.pairwise("abcdefghij")]
    path.write_text("\n".join(lines))
    with pytest.raises(FileFaultsError, match=r"sidecar\.yaml:6: more than 100000 values"):
        check(path)


def test_check_config__as_json(tmp_path: Path) -> None:
    """For programs: what is wrong with place and words, or what the configuration comes to."""
    path = tmp_path / "sidecar.yaml"
    path.write_text("transport: slow\n")
    refused = run("check-config", "--json", str(path))
    found = json.loads(refused.stdout)
    assert (refused.exit_code, found["is_valid"], found["mistakes_total"]) == (1, False, 1)
    assert found["mistakes"][0] | {"file": ""} == {
        "file": "",
        "line": 1,
        "field": "transport",
        "problem": "must be 'fast' or 'grpcio', not 'slow'",
    }
    path.write_text(LISTEN)
    passed = run("check-config", "--json", str(path))
    found = json.loads(passed.stdout)
    assert (passed.exit_code, found["is_valid"], found["summary"]["workers"]) == (0, True, "1")


def online(tmp_path: Path, url: str, registry: str = "") -> tuple[int, dict[str, object]]:
    """Exit code and output of an online check of a store."""
    path = tmp_path / "sidecar.yaml"
    path.write_text(f"store: {url}\n{registry}{LISTEN}")
    result = run("check-config", "--online", "--json", str(path))
    return result.exit_code, json.loads(result.stdout)


@pytest.mark.parametrize("kind", ["standalone", "sentinel", "cluster"])
def test_check_config__online(tmp_path: Path, kind: str) -> None:
    """A store that is there says its version, what it evicts, and that no registry is in it yet."""
    url = str(getattr(shared(), kind).url)
    code, found = online(tmp_path, f"{url}{'&' if '?' in url else '?'}prefix=nobody")
    assert (code, found["is_valid"]) == (0, True)
    assert "maxmemory-policy noeviction, no registry" in str(found["summary"])
    assert "create one with 'sidecar admin bootstrap'" in str(found["warnings"])


def test_check_config__online_unreachable(tmp_path: Path) -> None:
    """Nobody listens there."""
    code, found = online(tmp_path, f"redis://127.0.0.1:{free_port()}")
    assert code == 1
    assert "cannot be used: nothing listens at" in str(found["mistakes"])


def test_check_config__online_eviction(tmp_path: Path) -> None:
    """An evicting server is refused where the registry lives, and warned of where only buckets do."""
    (tmp_path / "r.yaml").write_text("integrations: []")
    server = RedisServer(tmp_path / "redis", "--maxmemory-policy", "allkeys-lru")
    server.start()
    try:
        code, found = online(tmp_path, server.url)
        assert (code, "set maxmemory-policy noeviction" in str(found["mistakes"])) == (1, True)
        code, found = online(tmp_path, server.url, "registry: r.yaml\n")
        assert (code, "set maxmemory-policy noeviction" in str(found["warnings"])) == (0, True)
    finally:
        server.stop()


def test_check_config__online_with_an_embedded_store(tmp_path: Path) -> None:
    """There is nothing to ask."""
    assert online(tmp_path, "'embedded:'")[0] == 0
