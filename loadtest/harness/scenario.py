"""Scenarios: what is sent to which servers, what happens meanwhile, and which answers are right."""

from __future__ import annotations

import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic_core import ErrorDetails

from loadtest.driver.schedule import Segment, segments_of
from loadtest.driver.targets import TargetError, parse_target
from sidecar.domain.suggestions import did_you_mean

FOLDER = Path(__file__).parent.parent / "scenarios"
INTEGRATIONS_MAX = 100_000
CONNECTIONS_MAX = 900
"""Of one driver process: `select` watches at most 1,024 descriptors."""
KINDS = ("valid", "unknown", "suspended", "wrong_scope", "foreign_address")
"""The kinds of requests, in the order of their numbers in a `Tally`."""

Share = Annotated[float, Field(ge=0, le=1)]


class ScenarioError(ValueError):
    """A scenario cannot be used; the message names the file, the keys and what is allowed."""


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class LoadSettings(_Strict):
    """
    How many calls arrive when.

    Open loop: calls leave on schedule, whatever the server does. Closed loop: every stream sends its next
    call when the last one is answered, and the rates mean nothing. `peak_per_s` and `steps` are for the
    shapes that have them, see `schedule.segments_of`. With `peak_share` the peak is measured first, in a
    closed loop, and `rate_per_s` is that share of it. No latency is kept of the first `warm_up_s`.
    """

    loop: Literal["open", "closed"] = "open"
    shape: Literal["constant", "ramp", "step", "spike", "soak"] = "constant"
    rate_per_s: Annotated[float, Field(gt=0, le=10_000_000)] = 1_000.0
    peak_per_s: Annotated[float, Field(ge=0, le=10_000_000)] = 0.0
    peak_share: Annotated[float, Field(ge=0, le=2)] = 0.0
    steps: Annotated[int, Field(ge=1, le=100)] = 5
    duration_s: Annotated[float, Field(gt=0, le=604_800)] = 30.0
    warm_up_s: Annotated[float, Field(ge=0)] = 1.0
    arrivals: Literal["poisson", "uniform"] = "poisson"

    @property
    def segments(self) -> list[Segment]:
        """The rate over time."""
        return segments_of(self.shape, self.duration_s, self.rate_per_s, self.peak_per_s, self.steps)


class ConnectionSettings(_Strict):
    """
    How calls reach the server.

    `processes` drivers open `connections` in all, with at most `streams` calls in flight on each (HTTP/1.1:
    one). `transport` and `tls` are how the harness's own servers listen; a target's address says it itself.
    """

    connections: Annotated[int, Field(ge=1, le=10_000)] = 8
    streams: Annotated[int, Field(ge=1, le=1_000)] = 64
    processes: Annotated[int, Field(ge=1, le=64)] = 1
    transport: Literal["tcp", "unix"] = "tcp"
    tls: bool = False
    answer_timeout_s: Annotated[float, Field(gt=0, le=60)] = 5.0


class MixSettings(_Strict):
    """The shares of the kinds of requests; they add up to 1."""

    valid: Share = 1.0
    unknown: Share = 0.0
    suspended: Share = 0.0
    wrong_scope: Share = 0.0
    foreign_address: Share = 0.0

    @model_validator(mode="after")
    def _is_whole(self) -> MixSettings:
        total = sum(self.shares)
        if abs(total - 1) > 1e-6:
            raise ValueError(f"the shares add up to {total:g}; they must add up to 1")
        return self

    @property
    def shares(self) -> tuple[float, ...]:
        """The shares, in the order of `KINDS`."""
        return tuple(getattr(self, kind) for kind in KINDS)


class TrafficSettings(_Strict):
    """
    Who asks: the number of integrations, and how unevenly they are drawn (integration k by 1 / k^`zipf`).

    `unknown_keys` well-formed keys belong to nobody, and come from so many `unknown_addresses`, each in
    another /24 as far as possible. 0 `allowlist_entries` = any address may send requests.
    `focus_share` of the valid calls are of the integration that an event suspends next.
    """

    integrations: Annotated[int, Field(ge=1, le=INTEGRATIONS_MAX)] = 100
    zipf: Annotated[float, Field(ge=0, le=4)] = 0.0
    unknown_keys: Annotated[int, Field(ge=1, le=INTEGRATIONS_MAX)] = 1_000
    unknown_addresses: Annotated[int, Field(ge=1, le=INTEGRATIONS_MAX)] = 1
    allowlist_entries: Annotated[int, Field(ge=0, le=50)] = 50
    focus_share: Share = 0.0
    mix: MixSettings = MixSettings()


class LimitSettings(_Strict):
    """
    The limit of each integration.

    `token_bucket`: `rpm` per minute and `burst`. `fixed_window` (protocol rls): `rpm` in each `unit`.
    """

    rpm: Annotated[int, Field(ge=1, le=4_000_000_000)] = 10_000
    burst: Annotated[int, Field(ge=1, le=4_000_000_000)] = 1_000_000
    algorithm: Literal["token_bucket", "fixed_window"] = "token_bucket"
    unit: Literal["second", "minute", "hour", "day"] = "minute"

    @property
    def unit_s(self) -> int:
        """The length of the unit."""
        return {"second": 1, "minute": 60, "hour": 3_600, "day": 86_400}[self.unit]


class TargetSettings(_Strict):
    """
    A server that runs already; the harness then starts none.

    `keys` is a file with an API key in each line, then optionally a comma and its kind (default `valid`).
    `key_header`, `method`, `path` and `wrong_scope_path` make up a request; `domain` and `entry` a rate-limit
    call, whose descriptor has the entry with the integration's number as its value. `pid` is its process, if
    it runs on this machine: its processor time and memory are then in the report, with those of its children.
    """

    address: str
    ca: str = ""
    keys: str = ""
    key_header: str = "x-api-key"
    method: str = "GET"
    path: str = "/v1/orders/42?expand=lines"
    wrong_scope_path: str = "/v1/refunds/42"
    domain: str = "shop"
    entry: str = "user"
    pid: Annotated[int, Field(ge=0)] = 0

    @model_validator(mode="after")
    def _is_address(self) -> TargetSettings:
        try:
            parse_target(self.address)
        except TargetError as error:
            raise ValueError(str(error)) from None
        return self


class SidecarSettings(_Strict):
    """
    The servers that the harness starts if there is no target.

    `count` sidecars of `workers` each share a `store`: one redis-server, a primary with two replicas behind
    three Sentinels, or a Cluster of three primaries with a replica each. `registry: api` makes integrations
    through the admin API, so that they can be suspended. `proxy` runs nginx in front of the first one.
    `settings` are keys of the sidecar's configuration file.
    """

    store: Literal["embedded", "redis", "sentinel", "cluster"] = "embedded"
    count: Annotated[int, Field(ge=1, le=16)] = 1
    workers: Annotated[int, Field(ge=1, le=64)] = 1
    registry: Literal["file", "api"] = "file"
    proxy: Literal["", "nginx", "nginx-accel"] = ""
    settings: dict[str, Any] = {}


class EventSettings(_Strict):
    """
    Something that happens during the load, `at_s` after its start, or when the event before it has ended.

    `pause-redis` and `resume-redis` stop and continue the process, `kill-redis` and `start-redis` lose its
    data; of a Sentinel group or Cluster they concern the primary, and `fail-over` has Sentinels replace it.
    `restart-sidecars` restarts one after the other. `suspend` suspends `times` integrations, from number
    `integration` on, with `pause_s` before and after each, shared by so many `administrators`; it does not
    delay other events.
    """

    at_s: Annotated[float, Field(ge=0)]
    do: Literal[
        "pause-redis", "resume-redis", "kill-redis", "start-redis", "fail-over", "restart-sidecars", "suspend"
    ]
    integration: Annotated[int, Field(ge=0)] = 0
    times: Annotated[int, Field(ge=1, le=INTEGRATIONS_MAX)] = 1
    pause_s: Annotated[float, Field(ge=0, le=60)] = 0.0
    administrators: Annotated[int, Field(ge=1, le=16)] = 1

    @property
    def integrations(self) -> range:
        """The integrations that it suspends."""
        return range(self.integration, self.integration + self.times if self.do == "suspend" else 0)


class OracleSettings(_Strict):
    """
    Which answers are right, and how many may be missing.

    `headers`: a known integration is told its limit, what remains and the reset. `exclusive`: nobody
    else uses the buckets, before or during the run, so every refusal must be explained by this run's calls.
    `clock_skew_s` is the most that the server's clock differs.
    `unavailable_share_max` is for 503 outside of outages, `unanswered_share_max` for calls without an answer.
    After an outage of the store, 503 is right for another `recovery_s`. Memory of
    servers may grow by `rss_growth_max_mb` after the warm-up; 0 = it is not checked.
    """

    headers: bool = True
    exclusive: bool = True
    clock_skew_s: Annotated[float, Field(ge=0, le=3_600)] = 0.0
    unavailable_share_max: Share = 0.01
    unanswered_share_max: Share = 0.0
    recovery_s: Annotated[float, Field(ge=0)] = 3.0
    rss_growth_max_mb: Annotated[float, Field(ge=0)] = 0.0


class Scenario(_Strict):
    """One scenario; docs/develop/load-testing.md explains the file."""

    name: str = ""
    description: str = ""
    protocol: Literal["ext_authz", "native", "rls", "forward_auth", "http"] = "ext_authz"
    seed: int = 1
    load: LoadSettings = LoadSettings()
    connections: ConnectionSettings = ConnectionSettings()
    traffic: TrafficSettings = TrafficSettings()
    limits: LimitSettings = LimitSettings()
    target: TargetSettings | None = None
    sidecar: SidecarSettings = SidecarSettings()
    events: tuple[EventSettings, ...] = ()
    oracle: OracleSettings = OracleSettings()

    @property
    def burst(self) -> int:
        """The most that an integration may take at once; the rate-limit service has no burst of its own."""
        return self.limits.rpm if self.protocol == "rls" else self.limits.burst

    @model_validator(mode="after")
    def _is_possible(self) -> Scenario:
        for fault in self._faults():
            raise ValueError(fault)
        return self

    def _faults(self) -> list[str]:
        checks = (*self._load_checks(), *self._server_checks())
        return [fault for is_wrong, fault in checks if is_wrong]

    def _load_checks(self) -> Sequence[tuple[bool, str]]:
        kinds, shape, connections = self.traffic.mix, self.load.shape, self.connections
        return (
            (
                shape in ("ramp", "step", "spike") and not self.load.peak_per_s,
                f"load.shape is {shape!r}, which needs load.peak_per_s",
            ),
            (
                connections.connections > CONNECTIONS_MAX * connections.processes,
                f"connections.connections is {connections.connections}; a process has at most"
                f" {CONNECTIONS_MAX}: raise connections.processes",
            ),
            (
                connections.processes > connections.connections,
                "connections.processes is more than connections.connections; every process needs one",
            ),
            (
                connections.tls and connections.transport == "unix",
                "connections.tls needs connections.transport = 'tcp'",
            ),
            (
                self.protocol == "rls" and kinds.valid < 1,
                "protocol 'rls' knows no keys, so traffic.mix.valid must be 1",
            ),
            (
                bool(kinds.foreign_address) and not self.traffic.allowlist_entries,
                "traffic.mix.foreign_address needs traffic.allowlist_entries",
            ),
            (
                self.limits.algorithm == "fixed_window" and self.protocol != "rls",
                "limits.algorithm 'fixed_window' is only for protocol 'rls'",
            ),
        )

    def _server_checks(self) -> Sequence[tuple[bool, str]]:
        sidecar, events = self.sidecar, {event.do for event in self.events}
        if self.target is not None:
            return (
                (bool(events), "events change servers of the harness; remove them or target"),
                (
                    self.protocol != "rls" and not self.target.keys,
                    "target.keys must be a file of API keys: the harness cannot create integrations there",
                ),
            )
        kinds, has_redis = self.traffic.mix, sidecar.store != "embedded"
        redis_events = sorted(event for event in events if event.endswith("-redis"))
        return (
            (
                bool(redis_events) and not has_redis,
                f"event {', '.join(redis_events)} needs sidecar.store = 'redis', 'sentinel' or 'cluster'",
            ),
            (
                "fail-over" in events and sidecar.store != "sentinel",
                "event fail-over needs sidecar.store = 'sentinel'",
            ),
            (
                bool(self.traffic.focus_share) and "suspend" not in events,
                "traffic.focus_share needs an event suspend",
            ),
            (
                "suspend" in events and sidecar.registry != "api",
                "event suspend needs sidecar.registry = 'api'",
            ),
            (
                any(event.integrations.stop > self.traffic.integrations for event in self.events),
                "an event suspends integrations that do not exist: integration + times is more than"
                " traffic.integrations",
            ),
            (
                sidecar.registry == "api" and kinds.valid + kinds.unknown < 1,
                "sidecar.registry 'api' makes active integrations only: mix valid and unknown",
            ),
            (
                bool(sidecar.proxy) != (self.protocol == "http"),
                "sidecar.proxy and protocol 'http' belong together",
            ),
            (
                (sidecar.count > 1 or sidecar.workers > 1) and not has_redis,
                "several sidecars or workers share buckets: sidecar.store must not be 'embedded'",
            ),
        )


def load_scenario(name: str, changes: Sequence[str] = ()) -> Scenario:
    """
    Return the built-in scenario *name*, or the one in the file *name*.

    *changes* are `key.key=value`, a TOML value or plain text, which override the file.

    Raises:
        ScenarioError: the scenario does not exist, or has an invalid key or value.
    """
    is_file = name.endswith(".toml")
    path = Path(name) if is_file else FOLDER / f"{name}.toml"
    try:
        settings = tomllib.loads(path.read_text())
    except FileNotFoundError:
        if is_file:
            raise ScenarioError(f"{path}: no such file") from None
        known = sorted(file.stem for file in FOLDER.glob("*.toml"))
        raise ScenarioError(
            f"no scenario {name!r}{did_you_mean(name, known)}; built in are {', '.join(known)};"
            " or give a FILE.toml"
        ) from None
    except (OSError, tomllib.TOMLDecodeError) as error:
        raise ScenarioError(f"{path}: {error}") from None
    for change in changes:
        _apply(settings, change)
    try:
        return Scenario(**{"name": path.stem, **settings})
    except ValidationError as error:
        raise ScenarioError(
            "\n".join(f"{path}: {_place(item['loc'])}{_plain(item)}" for item in error.errors())
        ) from None


def _apply(settings: dict[str, Any], change: str) -> None:
    key, equals, text = change.partition("=")
    if not equals:
        raise ScenarioError(f"--set is {change!r}; it must be KEY=VALUE, such as load.rate_per_s=5000")
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text
    *sections, last = key.split(".")
    for section in sections:
        settings = settings.setdefault(section, {})
        if not isinstance(settings, dict):
            raise ScenarioError(f"--set {key}: {section} is not a section of a scenario")
    settings[last] = value


def _place(location: tuple[int | str, ...]) -> str:
    return f"{'.'.join(map(str, location))}: " if location else ""


def _plain(fault: ErrorDetails) -> str:
    """Return what is wrong, with the value, and what is allowed."""
    message, given = fault["msg"].removeprefix("Value error, "), fault["input"]
    if fault["type"] == "extra_forbidden":
        *sections, key = fault["loc"]
        known = _keys(tuple(sections))
        return f"unknown key{did_you_mean(str(key), known)}; keys are {', '.join(known)}"
    if fault["type"] == "value_error" or isinstance(given, dict):
        return message
    return f"is {given!r}; {message.replace('Input should be', 'it must be')}"


def _keys(sections: tuple[int | str, ...]) -> list[str]:
    """Return the keys of a section."""
    settings: type[BaseModel] = Scenario
    for section in sections:
        if isinstance(section, str):
            settings = _SECTIONS.get(section, settings)
    return list(settings.model_fields)


_SECTIONS: dict[str, type[BaseModel]] = {
    "load": LoadSettings,
    "connections": ConnectionSettings,
    "traffic": TrafficSettings,
    "mix": MixSettings,
    "limits": LimitSettings,
    "target": TargetSettings,
    "sidecar": SidecarSettings,
    "events": EventSettings,
    "oracle": OracleSettings,
}
