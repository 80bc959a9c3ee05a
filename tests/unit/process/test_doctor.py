"""`sidecar doctor`: what it finds wrong, with a remedy, and what it finds well."""

from __future__ import annotations

import json
import os
import signal
import socket
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from sidecar.process.doctor import Finding, State, examine
from sidecar.transports.server import TlsFiles
from tests.certificates import Authority, write
from tests.redis_servers import RedisServer, free_port, shared
from tests.unit.cli.test_cli import run
from tests.unit.process.running import Configured
from tests.waiting import eventually


def configured(folder: Path, **settings: object) -> Configured:
    """A configuration with an integration and addresses that are free."""
    listen = {"grpc": f"127.0.0.1:{free_port()}", "admin": f"127.0.0.1:{free_port()}"}
    written = Configured(folder, **{"listen": listen, **settings})
    written.file.chmod(0o600)
    written.registry.chmod(0o600)
    return written


def findings(place: Configured) -> dict[str, Finding]:
    """The worst finding of each name."""
    order = [State.SKIPPED, State.OK, State.WARNING, State.FAILED]
    found = sorted(examine(place.file), key=lambda finding: order.index(finding.state))
    assert all(finding.remedy for finding in found if finding.state is State.FAILED)
    return {finding.name: finding for finding in found}


def states(place: Configured) -> dict[str, State]:
    """The state of each name."""
    return {name: finding.state for name, finding in findings(place).items()}


def test_doctor__a_sound_configuration(tmp_path: Path) -> None:
    """Everything is well, and nothing runs."""
    found = states(configured(tmp_path))
    assert found.pop("running") is State.SKIPPED
    assert set(found.values()) == {State.OK}
    assert list(found)[:2] == ["configuration", "files"]


def test_doctor__mistakes_do_not_hide_the_rest(tmp_path: Path) -> None:
    """A registry with a mistake is named with its line; a file without meaning ends the examination."""
    place = configured(tmp_path)
    place.write_registry(rate_limit_rpm=0)
    found = findings(place)
    assert found["configuration"].state is State.FAILED
    assert "registry.yaml:" in found["configuration"].finding
    assert (found["registry"].state, found["listen.grpc"].state) == (State.SKIPPED, State.OK)
    place.file.write_text("nonsense: 1\n")
    assert states(place) == {"configuration": State.FAILED, "everything else": State.SKIPPED}


def test_doctor__files_that_others_may_change(tmp_path: Path) -> None:
    """Anyone who may write the registry decides who is admitted."""
    place = configured(tmp_path)
    place.registry.chmod(0o666)
    finding = findings(place)["files"]
    assert finding.state is State.WARNING
    assert finding.remedy == f"chmod go-w {place.registry}"


def test_doctor__an_address_that_another_program_uses(tmp_path: Path) -> None:
    """With its name, before `serve` fails."""
    with socket.create_server(("127.0.0.1", 0)) as other:
        grpc = f"127.0.0.1:{other.getsockname()[1]}"
        finding = findings(configured(tmp_path, listen={"grpc": grpc, "admin": []}))["listen.grpc"]
    assert finding.state is State.FAILED
    assert grpc in finding.finding
    assert (
        "ps -o pid,stat" in finding.remedy
    )  # it may be a stopped sidecar, which still decides in its workers


@pytest.mark.parametrize(("days", "state"), [(90, State.OK), (10, State.WARNING), (-0.01, State.FAILED)])
def test_doctor__certificates(tmp_path: Path, days: float, state: State) -> None:
    """They are warned of a month ahead."""
    files = TlsFiles(tmp_path / "cert.pem", tmp_path / "key.pem")
    write(files, Authority("ca").issue("here", datetime.now(UTC) + timedelta(days=days)))
    tls = {"cert": "cert.pem", "key": "key.pem"}
    listen = {"grpc": {"address": f"127.0.0.1:{free_port()}", "tls": tls}, "admin": []}
    assert states(configured(tmp_path, listen=listen))["certificate of listen.grpc[0]"] is state


def test_doctor__a_store_that_answers(tmp_path: Path) -> None:
    """Version, eviction policy, a write, and the clocks."""
    found = findings(configured(tmp_path, store=shared().standalone.url))
    assert found["store"].state is State.OK
    for fact in ("version", "noeviction", "accepts writes"):
        assert fact in found["store"].finding
    assert found["clock"].state is State.OK


def test_doctor__a_store_that_does_not(tmp_path: Path) -> None:
    """Unreachable, or out of memory for every write."""
    place = configured(tmp_path, store=f"redis://127.0.0.1:{free_port()}")
    assert findings(place)["store"].state is State.FAILED
    server = RedisServer(tmp_path / "redis", "--maxmemory", "1").start()
    try:
        finding = findings(configured(tmp_path, store=server.url))["store"]
    finally:
        server.stop()
    assert finding.state is State.FAILED
    assert "accepts no writes: OOM" in finding.finding


def test_doctor__the_folder_of_the_decision_log(tmp_path: Path) -> None:
    """It need not exist, but a file in its place takes no rows."""
    assert "decision log" not in states(configured(tmp_path))
    place = configured(tmp_path, decision_log="var/decisions")
    assert states(place)["decision log"] in (State.OK, State.WARNING)  # the disk of the test may be full
    (tmp_path / "var").write_text("")
    assert states(place)["decision log"] is State.FAILED


def test_doctor__a_running_sidecar(tmp_path: Path) -> None:
    """Its components are listed; the exit code and the JSON are for scripts."""
    place = configured(tmp_path)
    with place.serve() as sidecar:
        sidecar.event("serving")
        found = eventually(lambda: _ready(place), what="the sidecar is ready")
        assert found["running"].state is State.OK
        assert found["registry"].finding == "loaded"
        assert "is served" in found["listen.grpc"].finding
        done = run("doctor", "--config", str(place.file), "--json")
    assert done.exit_code == 0
    assert json.loads(done.stdout)["is_healthy"] is True
    place.file.write_text("nonsense: 1\n")
    assert run("doctor", "--config", str(place.file)).exit_code == 1


def test_doctor__a_running_sidecar_that_loses_its_log(tmp_path: Path) -> None:
    """While it runs, the folder has to exist and take rows; rows that were lost are counted."""
    place = configured(tmp_path, decision_log={"path": "decisions", "flush_interval_s": 1})
    log = tmp_path / "decisions"
    with place.serve() as sidecar:
        (grpc,) = sidecar.event("serving")["grpc"]
        eventually(lambda: log.exists() and _ready(place), what="the sidecar is ready")
        moved = log.rename(tmp_path / "moved")
        assert states(place)["decision log"] is State.FAILED
        moved.rename(log)
        (sub_folder,) = log.iterdir()
        sub_folder.rename(tmp_path / "moved")
        place.ask(grpc)
        failing = eventually(lambda: _worst_of_log(place, State.FAILED), what="the log fails")
        assert "Make room" in failing.remedy
        os.kill(sidecar.event("decision log: writer started")["pid"], signal.SIGKILL)
        place.ask(grpc)  # the next row shows that the one before is missing
        lost = eventually(lambda: _worst_of_log(place, State.WARNING), what="a row was lost")
        assert "1 lost" in lost.finding


def _worst_of_log(place: Configured, state: State) -> Finding | None:
    found = findings(place)["decision log"]
    return found if found.state is state else None


def _ready(place: Configured) -> dict[str, Finding] | None:
    found = findings(place)
    return found if found["running"].state is State.OK else None
