"""
Examines a configured or running sidecar in the order in which a person would, with a remedy for each problem.

The checks are those of `check-config` and of its `--online`; here each result is a value. In addition the
examination looks at what only exists while a sidecar runs or is about to: used addresses, readiness, modes of
files, dates of certificates, and whether the store accepts a write.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import stat
from collections.abc import Generator, Iterator, Mapping
from contextlib import suppress
from datetime import UTC, datetime
from enum import Enum
from pathlib import Path
from typing import Any, NamedTuple

import httpx
from prometheus_client.parser import text_string_to_metric_families

from sidecar.process.checking import check
from sidecar.process.config import Config, load_config
from sidecar.process.listeners import endpoints
from sidecar.process.online_check import OnlineReport, ask_store
from sidecar.process.readiness import SOUND_STATES
from sidecar.process.settings import LISTEN_KINDS, SUPERVISED_KINDS
from sidecar.process.wiring import LoadedConfig
from sidecar.sources.file_faults import FileFaultsError
from sidecar.transports.listeners import is_served
from sidecar.transports.server import Endpoint
from sidecar.transports.tls import certificate_end

PAGE_TIMEOUT_S = 5.0
CERTIFICATE_WARNING_DAYS = 30
LOG_FREE_BYTES_MIN = 1 << 30
CLOCK_DIFFERENCE_MAX_US = 1_000_000
"""Credentials expire by the store's clock; a person compares them with this machine's."""
ANY_HOST = {"0.0.0.0": "127.0.0.1", "::": "::1"}
"""Where to connect to an address that means every address of the machine."""


STORE_REMEDY = "docs/operate/registry-redis.md has the settings and permissions that a store needs."


class State(Enum):
    """The result of one check."""

    OK = "ok"
    WARNING = "warning"
    FAILED = "failed"
    SKIPPED = "skipped"


class Finding(NamedTuple):
    """One result: what was checked, what was found, and what to do about it ('' = nothing)."""

    name: str
    state: State
    finding: str
    remedy: str = ""


def examine(path: Path | None) -> Iterator[Finding]:
    """Yield the findings about the configuration at *path* (None = the default file), as they are made."""
    try:
        config = load_config(path)
    except FileFaultsError as error:
        yield from _mistakes(error)
        yield Finding("everything else", State.SKIPPED, "not checked without a valid configuration")
        return
    loaded = yield from _examine_configuration(path, config)
    yield from _examine_files(config)
    page = _running_page(config)
    yield from _examine_addresses(config, is_running=page is not None)
    yield from _examine_store(config)
    yield from _examine_registry(config, loaded)
    yield from _examine_running(page)
    yield from _examine_certificates(config)
    yield from _examine_log_folder(config, is_running=page is not None)
    if page is not None and config.settings.decision_log.is_on:
        yield from _examine_log_writer(config)


def _mistakes(error: FileFaultsError) -> Iterator[Finding]:
    for line in error.lines():
        yield Finding("configuration", State.FAILED, line, "Correct it, and run the command again.")


def _examine_configuration(
    path: Path | None, config: Config
) -> Generator[Finding, None, LoadedConfig | None]:
    """Yield the findings of `check-config`, and return what the configuration names."""
    try:
        checked = check(path)
    except FileFaultsError as error:
        yield from _mistakes(error)
        return None
    yield Finding("configuration", State.OK, config.tree.file or "defaults")
    for warning in checked.warnings:
        yield Finding("configuration", State.WARNING, str(warning), "Change it unless it is intended.")
    return checked.loaded


def _examine_files(config: Config) -> Iterator[Finding]:
    """Find files that decide who is admitted and that other users may change."""
    files = [Path(config.tree.file)] if config.tree.file else []
    files += [file for file in (config.registry_path, config.registry_database) if file is not None]
    loose = [file for file in files if file.exists() and file.stat().st_mode & (stat.S_IWGRP | stat.S_IWOTH)]
    for file in loose:
        problem = f"{file} may be changed by other users ({stat.filemode(file.stat().st_mode)})"
        yield Finding("files", State.WARNING, problem, f"chmod go-w {file}")
    if not loose:
        names = ", ".join(map(str, files)) or "none"
        yield Finding("files", State.OK, f"only their owner may change them: {names}")


def _examine_addresses(config: Config, *, is_running: bool) -> Iterator[Finding]:
    """Compare which addresses are in use with which should be."""
    for kind in LISTEN_KINDS:
        for endpoint in endpoints(config, kind):
            name = f"listen.{kind}"
            is_used = (bool(endpoint.path) or endpoint.port != 0) and is_served(endpoint)
            if is_used and not is_running:
                yield Finding(
                    name, State.FAILED,
                    f"{endpoint} is used, but no sidecar answers on listen.admin or listen.metrics",
                    "See which program uses it (ss -ltnp). A sidecar that does not answer is stopped or"
                    f" overloaded (ps -o pid,stat,pcpu,args). Stop another program, or change {name}.",
                )  # fmt: skip
            elif is_running and not is_used and endpoint.port:
                yield Finding(
                    name, State.FAILED, f"the sidecar runs, but nothing listens on {endpoint}",
                    "Look at the log of the sidecar; restart it after a change of its addresses.",
                )  # fmt: skip
            else:
                yield Finding(name, State.OK, f"{endpoint} {'is served' if is_used else 'is free'}")


def _running_page(config: Config) -> Mapping[str, Any] | None:
    """What /readyz of the sidecar with *config* says; None = it does not run, or does not answer."""
    for content in _pages(config, "/readyz"):
        with suppress(ValueError):
            page = json.loads(content)
            if isinstance(page, dict) and "components" in page:
                return page
    return None


def _pages(config: Config, path: str) -> Iterator[bytes]:
    """Yield what each supervised listener of *config* answers to a GET of *path*."""
    for kind in SUPERVISED_KINDS:
        for endpoint in endpoints(config, kind):
            with suppress(httpx.HTTPError):
                yield _page(endpoint, path)


def _page(endpoint: Endpoint, path: str) -> bytes:
    scheme = "https://" if endpoint.tls else "http://"
    host = ANY_HOST.get(endpoint.host, endpoint.host)
    place = "localhost" if endpoint.path else str(Endpoint(host=host, port=endpoint.port))
    # The page holds no secret and is compared with nothing, and the certificate may be for another name.
    transport = httpx.HTTPTransport(verify=False, uds=endpoint.path or None, trust_env=False)
    with httpx.Client(transport=transport, timeout=PAGE_TIMEOUT_S, trust_env=False) as client:
        return client.get(f"{scheme}{place}{path}").content


def _examine_store(config: Config) -> Iterator[Finding]:
    if config.shared_store is None:
        yield Finding("store", State.OK, "embedded: in the memory of the process")
        return
    try:
        report = asyncio.run(ask_store(config, tries_write=True))
    except FileFaultsError as error:
        for line in error.lines():
            yield Finding("store", State.FAILED, line, STORE_REMEDY)
        return
    yield Finding("store", State.OK, ", ".join(report.facts))
    for warning in report.warnings:
        yield Finding("store", State.WARNING, warning.problem, STORE_REMEDY)
    yield _clock_finding(report)


def _clock_finding(report: OnlineReport) -> Finding:
    ahead_us = report.clock_ahead_us
    text = f"the store's clock minus this machine's: {ahead_us / 1e6:+.3f} s"
    if abs(ahead_us) <= CLOCK_DIFFERENCE_MAX_US:
        return Finding("clock", State.OK, text)
    return Finding("clock", State.WARNING, text, "Synchronize both clocks (chronyc tracking, timedatectl).")


def _examine_registry(config: Config, loaded: LoadedConfig | None) -> Iterator[Finding]:
    if loaded is None:
        yield Finding("registry", State.SKIPPED, "not loaded because of the mistakes above")
        return
    if config.has_control_plane:
        where = config.registry_database or "the store"
        yield Finding("registry", State.OK, f"in {where}, changed by administrators")
        return
    count = len(loaded.registry.snapshot.integrations)
    if count:
        yield Finding("registry", State.OK, f"{config.registry_path}: {count} integrations")
    else:
        remedy = "Set 'registry', or add integrations to the file."
        yield Finding("registry", State.WARNING, "no integrations: every API key is refused", remedy)


def _examine_running(page: Mapping[str, Any] | None) -> Iterator[Finding]:
    """Report each component of a running sidecar: registry, store, listeners, or its workers."""
    if page is None:
        remedy = "Start it with `sidecar serve`, or look at its log."
        yield Finding(
            "running", State.SKIPPED, "no sidecar answers on listen.admin or listen.metrics", remedy
        )
        return
    states = {"ready": State.OK, "degraded": State.WARNING}
    yield Finding("running", states.get(page["status"], State.FAILED), f"/readyz says {page['status']}")
    for name, component in page["components"].items():
        if not component["is_ready"]:
            remedy = "The log of the sidecar has the reason; see SidecarNotReady in runbook.md."
            yield Finding(name, State.FAILED, component["state"], remedy)
        elif component["state"] in SOUND_STATES:
            yield Finding(name, State.OK, component["state"])
        else:
            yield Finding(name, State.WARNING, component["state"], "The log of the sidecar has the reason.")


def _examine_certificates(config: Config) -> Iterator[Finding]:
    """Report when the certificate of each listener expires."""
    for kind in LISTEN_KINDS:
        for index in range(len(getattr(config.settings.listen, kind))):
            files = config.tls_files(kind, index)
            if files is None or not os.access(files.certificate, os.R_OK):
                continue  # an unreadable file is one of the mistakes
            end = certificate_end(files.certificate.read_bytes())
            left = end - datetime.now(UTC)
            verb = "expired at" if left.total_seconds() < 0 else "is valid until"
            text = f"{files.certificate} {verb} {end:%Y-%m-%dT%H:%M:%SZ}"
            state, remedy = State.OK, ""
            if left.days < CERTIFICATE_WARNING_DAYS:
                state = State.FAILED if left.total_seconds() < 0 else State.WARNING
                remedy = "Renew it; a running sidecar reads the new file by itself."
            yield Finding(f"certificate of listen.{kind}[{index}]", state, text, remedy)


def _examine_log_folder(config: Config, *, is_running: bool) -> Iterator[Finding]:
    """Report whether the folder of the decision log, or the one that it is created in, takes files."""
    setting = config.settings.decision_log.path
    if setting is None:
        return
    name, folder = "decision log", config.path(setting)
    if is_running and not folder.exists():
        remedy = (
            "Move it back if it was moved, or restart the sidecar, which creates it: unwritten rows are lost."
        )
        yield Finding(name, State.FAILED, f"{folder} does not exist, although the sidecar runs", remedy)
        return
    place = next(path for path in (folder, *folder.parents) if path.exists())
    if not place.is_dir() or not os.access(place, os.W_OK | os.X_OK):
        remedy = f"Create the folder for the user of the sidecar: install -d -o sidecar -m 0750 {folder}"
        yield Finding(name, State.FAILED, f"this user may not write to {place}", remedy)
        return
    free_bytes = shutil.disk_usage(place).free
    free = f"{free_bytes / (1 << 30):.1f} GiB" if free_bytes >= 1 << 30 else f"{free_bytes >> 20} MiB"
    text = f"{folder} is writable, {free} are free"
    if free_bytes < LOG_FREE_BYTES_MIN:
        yield Finding(name, State.WARNING, text, "Lower decision_log.keep_bytes, or use a larger disk.")
    else:
        yield Finding(name, State.OK, text)


def _examine_log_writer(config: Config) -> Iterator[Finding]:
    """Report whether the running sidecar records its decisions, and how many it could not record."""
    values = _log_metrics(config)
    if not values:
        return
    name = "decision log"
    if not values["sidecar_decision_log_writer_running"]:
        problem = "the process that writes it does not run; it is started again within seconds"
        yield Finding(name, State.FAILED, problem, "The log of the sidecar has the reason.")
    if values["sidecar_decision_log_failing"]:
        problem = "rows cannot be written; some wait in memory, further ones are dropped"
        remedy = (
            "Make room on its disk, or correct the mode of its folder; the sidecar then goes on by itself."
            " The log of the sidecar has the reason."
        )
        yield Finding(name, State.FAILED, problem, remedy)
    missing = {result: int(values[result]) for result in ("dropped", "lost", "stdout_dropped")}
    if any(missing.values()):
        counts = ", ".join(f"{count} {result}" for result, count in missing.items() if count)
        problem = f"decisions without a row since the sidecar started: {counts}"
        remedy = "`sidecar logs` has the spans and causes; see SidecarDecisionLogFails in runbook.md."
        yield Finding(name, State.WARNING, problem, remedy)


def _log_metrics(config: Config) -> dict[str, float]:
    """The metrics of the decision log by name, its counts of rows by result; {} = they cannot be read."""
    for content in _pages(config, "/metrics"):
        with suppress(ValueError):
            samples = [
                sample
                for family in text_string_to_metric_families(content.decode())
                for sample in family.samples
                if sample.name.startswith("sidecar_decision_log_")
            ]
            if samples:
                return {sample.labels.get("result", sample.name): sample.value for sample in samples}
    return {}
