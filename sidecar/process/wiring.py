"""Builds and connects the parts of one sidecar process, before anything is served."""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
import socket
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from sidecar.domain.fail_policy import FailPolicy
from sidecar.domain.snapshot import Snapshot
from sidecar.observe.logs import log_event
from sidecar.observe.metrics import Metrics
from sidecar.process.admin_http import AdminApp
from sidecar.process.config import Config
from sidecar.process.config_checks import (
    NO_CONTROL_PLANE,
    check_open_admin,
    check_registry_settings,
    check_repeated_address,
    check_trace_packages,
)
from sidecar.process.listeners import Listeners, deciding_kinds, endpoints
from sidecar.process.readiness import Readiness
from sidecar.process.registry_source import LoadedRegistry, RegistrySource
from sidecar.process.registry_watch import RegistryWatch
from sidecar.process.rules import Rules, build_rules
from sidecar.rpc.calls import Method
from sidecar.rpc.loop_turn import LoopTurn
from sidecar.services.decider import Decider
from sidecar.services.decision_service import SERVICE as DECISION_SERVICE
from sidecar.services.decision_service import DecisionService
from sidecar.services.ext_authz import ExtAuthzService
from sidecar.services.forward_auth import ForwardAuthService
from sidecar.services.health import HealthService
from sidecar.services.refusal_log import RefusalLog
from sidecar.sources.file_faults import FaultList
from sidecar.stores.clocks import wall_clock_us
from sidecar.stores.embedded import EmbeddedBucketStore
from sidecar.stores.protocols import BucketStore, CounterStore
from sidecar.stores.redis.urls import StoreUrl, StoreUrlError
from sidecar.transports.http1 import HttpServer
from sidecar.transports.http1.limits import HttpLimits
from sidecar.transports.http1.work import DECIDING, SHARED_LOOP, Pace
from sidecar.transports.server import ListeningServer

if TYPE_CHECKING:
    from sidecar.process.followed_registry import FollowedRegistry
    from sidecar.process.rate_limits_source import LoadedRateLimits, RateLimitsSource
    from sidecar.process.rate_limits_watch import RateLimitsWatch
    from sidecar.process.shared_store import SharedStore
    from sidecar.process.tracing import Tracing

HEALTH_SERVICES = ("", "envoy.service.auth.v3.Authorization", DECISION_SERVICE)
"""The services that the health service reports on; '' = the whole process."""
SWITCH_INTERVAL_S = 0.000_2
"""How long the thread of a SQLite registry may hold the interpreter while decisions wait for it."""

DRAIN_IDLE_S = 1.0
"""How long a drain keeps idle connections, because a proxy may just be sending a request on one."""

_log = logging.getLogger("sidecar.process")


@dataclass(frozen=True, slots=True)
class Sidecar:
    """
    The parts of one process.

    `server` is the gRPC server of `listeners`. `watch` None = no registry file; `shared` None = the store is
    embedded; `followed` None = administrators cannot change the registry; `rate_limits` None = no rate-limit
    files.
    """

    config: Config
    metrics: Metrics
    decider: Decider
    health: HealthService
    health_services: tuple[str, ...]
    readiness: Readiness
    server: ListeningServer
    listeners: Listeners
    watch: RegistryWatch | None
    shared: SharedStore | None = None
    followed: FollowedRegistry | None = None
    rate_limits: RateLimitsWatch | None = None
    tracing: Tracing | None = None


class LoadedConfig:
    """A checked configuration with its rules and its registry."""

    def __init__(self, config: Config) -> None:
        """
        Compile the rules and load the registry.

        Raises:
            FileFaultsError: rules or registry hold mistakes.
        """
        self.config = config
        self.sidecar_id = f"{socket.gethostname()[:64]}:{os.getpid()}:{secrets.token_hex(4)}"
        """The unique name of this process in the fleet: host, process id and random digits."""
        self.rules: Rules = build_rules(config)
        self.source: RegistrySource | None = None
        self.registry = LoadedRegistry(Snapshot.empty())
        self.shared_url = config.shared_store
        self._verify_settings()
        if self.shared_url is not None:
            self._verify(self.shared_url)
        path = config.registry_path
        if path is not None:
            self.source = RegistrySource(path, str(path), self.rules.catalogue)
            self.registry = self.source.load(self.registry.snapshot) or self.registry
        elif config.has_control_plane:
            self.registry = LoadedRegistry(Snapshot.unloaded())
        self.rate_limits_source: RateLimitsSource | None = None
        self.rate_limits: LoadedRateLimits | None = None
        limits_path = config.settings.rate_limits.path
        if limits_path is not None:
            from sidecar.process.rate_limits_source import RateLimitsSource

            self.rate_limits_source = RateLimitsSource(config.path(limits_path), config.settings.rate_limits)
            self.rate_limits = self.rate_limits_source.load()

    def decider(
        self, metrics: Metrics, shared: SharedStore | None = None, store: BucketStore | None = None
    ) -> Decider:
        """
        Build a decider with these rules and this registry.

        *shared* None = with embedded buckets; *store* takes from the buckets, None = they do themselves.
        """
        policy, snapshot = self.rules.policy, self.registry.snapshot
        listed_max = self.config.settings.integration_series_max
        metrics.top.listed_max = listed_max
        if shared is None:
            store = store or self.embedded_buckets()
            return Decider(policy, snapshot, store, metrics, listed_max=listed_max)
        timeout_s = self.config.settings.store_timeout_s
        buckets, clock_us = store or shared.buckets, shared.buckets.clock.now_us
        return Decider(policy, snapshot, buckets, metrics, clock_us, timeout_s, shared.fallback, listed_max)

    @staticmethod
    def embedded_buckets() -> EmbeddedBucketStore:
        """Build buckets in the memory of this process."""
        return EmbeddedBucketStore(wall_us=wall_clock_us)

    def tracing(self, shared: SharedStore | None) -> Tracing | None:
        """Build the traces of decisions; None = they are off, and OpenTelemetry is not imported."""
        settings = self.config.settings.traces
        if settings.endpoint is None:
            return None
        from sidecar.process.tracing import Tracing

        store = self.embedded_buckets() if shared is None else shared.buckets
        return Tracing(settings, store, self.sidecar_id)

    def shared_store(self, metrics: Metrics, turn: LoopTurn | None = None) -> SharedStore | None:
        """
        Build the buckets of the shared store; None = the store is embedded.

        *turn* is shared with the transport; None = not shared.
        """
        if self.shared_url is None:
            return None
        from sidecar.process.shared_store import SharedStore

        settings = self.config.settings
        return SharedStore(
            self.shared_url,
            metrics,
            self.sidecar_id,
            checks_generation=self.config.has_control_plane,
            timeout_s=settings.store_timeout_s,
            policy=FailPolicy(settings.on_store_error),
            turn=turn,
        )

    async def followed_registry(self, decider: Decider, metrics: Metrics) -> FollowedRegistry | None:
        """
        Open the registry that administrators change, for *decider* to follow; None = there is none.

        Raises:
            FileFaultsError: the registry's file cannot be used.
        """
        if not self.config.has_control_plane:
            return None
        from sidecar.process.control_plane import registry_of
        from sidecar.process.followed_registry import FollowedRegistry
        from sidecar.stores.registry.live import PUSH_PATIENCE_S

        # A SQLite file does not push changes of other processes, so waiting for a push is useless.
        patience_s = PUSH_PATIENCE_S if self.config.registry_database is None else 0.0
        return FollowedRegistry(await registry_of(self.config), decider, metrics, self.sidecar_id, patience_s)

    def _verify_settings(self) -> None:
        """Refuse settings that are valid alone but not together."""
        faults = FaultList(self.config.tree.file)
        check_registry_settings(self.config, faults)
        check_open_admin(self.config, faults)
        check_repeated_address(self.config, faults)
        check_trace_packages(self.config, faults)
        faults.raise_any()

    def _verify(self, url: StoreUrl) -> None:
        """Read the passwords and TLS files that *url* names, to find mistakes before the start."""
        try:
            url.verify()
        except StoreUrlError as error:
            faults = FaultList(self.config.tree.file)
            faults.put(self.config.fault(("store",), str(error)))
            faults.raise_any()


async def build_sidecar(loaded: LoadedConfig, metrics: Metrics) -> Sidecar:
    """
    Build and connect the parts of a sidecar for *loaded*; bind nothing yet.

    Raises:
        FileFaultsError: the registry's file cannot be used.
    """
    config = loaded.config
    turn = LoopTurn(asyncio.get_running_loop())
    shared = loaded.shared_store(metrics, turn)
    tracing = loaded.tracing(shared)
    decider = loaded.decider(metrics, shared, None if tracing is None else tracing.buckets)
    if tracing is not None:
        tracing.connect(decider)
    followed = await loaded.followed_registry(decider, metrics)
    if shared is not None and followed is not None:
        from sidecar.process.control_plane import connect_store_to_registry

        connect_store_to_registry(shared.buckets, followed)
    components = (*deciding_kinds(config), "registry", *(() if shared is None else shared.components))
    readiness = Readiness(metrics, components)
    rate_limits, rls_methods, rls_health_services = _rate_limits(loaded, metrics, shared)
    health_services = (*HEALTH_SERVICES, *rls_health_services)
    health = HealthService(health_services)
    style = loaded.rules.style
    _log_refusals(config, decider, metrics)
    methods: list[Method] = [
        *health.methods(),
        *ExtAuthzService(decider, style).methods(),
        *DecisionService(decider, style).methods(),
        *rls_methods,
    ]
    trusted = config.settings.forward_auth.trusted_proxies
    forward_auth = ForwardAuthService(decider, style, trusted, lambda: readiness.is_ready)
    if config.settings.whoami:
        from sidecar.services.whoami import CallerDescriber, DescribeCallerMethod, WhoAmI

        describer = CallerDescriber(decider)
        methods.append(DescribeCallerMethod(describer, decider, style).method())
        forward_auth.pages[b"/whoami"] = WhoAmI(describer, style, forward_auth.caller_of).serve
    if config.settings.reflection:
        from sidecar.services.reflection import ReflectionService

        methods += ReflectionService(methods).methods()
    watch = None if loaded.source is None else RegistryWatch(loaded.source, decider, metrics)
    if config.registry_database is not None:
        sys.setswitchinterval(SWITCH_INTERVAL_S)
    server = grpc_server(config, methods, metrics, turn)
    admin = AdminApp(metrics, readiness, SHARED_LOOP, NO_CONTROL_PLANE)
    servers = {
        "grpc": server,
        "http": forward_auth_server(config, forward_auth, metrics),
        **supervised_servers(config, admin, metrics, readiness, SHARED_LOOP),
    }
    return Sidecar(
        config,
        metrics,
        decider,
        health,
        health_services,
        readiness,
        server,
        Listeners(config, servers),
        watch,
        shared,
        followed,
        rate_limits,
        tracing,
    )


def _rate_limits(
    loaded: LoadedConfig, metrics: Metrics, shared: SharedStore | None
) -> tuple[RateLimitsWatch | None, Sequence[Method], Sequence[str]]:
    """Build Envoy's rate-limit service: watch, methods and names for health; None = it has no files."""
    source, rate_limits = loaded.rate_limits_source, loaded.rate_limits
    if source is None or rate_limits is None:
        return None, (), ()
    from sidecar.process.rate_limits_source import limit_style
    from sidecar.process.rate_limits_watch import RateLimitsWatch
    from sidecar.services.rate_limiter import RateLimiter
    from sidecar.services.rls import HEALTH_SERVICES as RLS_HEALTH_SERVICES
    from sidecar.services.rls import RateLimitService
    from sidecar.stores.embedded_counters import EmbeddedCounterStore

    settings = loaded.config.settings
    counters_max = settings.rate_limits.counters_per_domain_max
    counters: CounterStore = (
        EmbeddedCounterStore(counters_max=counters_max) if shared is None else shared.buckets.counters
    )
    style = limit_style(settings.rate_limits)
    limiter = RateLimiter(rate_limits.limits, style, counters, metrics, settings.store_timeout_s)
    watch = RateLimitsWatch(source, limiter, metrics)
    return watch, RateLimitService(limiter).methods(), RLS_HEALTH_SERVICES


def _log_refusals(config: Config, decider: Decider, metrics: Metrics) -> None:
    """Have *decider* log what operators must know: refusals, misconfigured routes, key floods."""
    policy = decider.policy
    policy.on_misconfigured = _log_misconfigured
    if config.settings.log.refusals == "sampled":
        decider.on_refused = RefusalLog().note
    if policy.key_flood is not None:
        policy.key_flood.on_flood = partial(_log_flood, metrics)


def _log_misconfigured(problem: str) -> None:
    log_event(
        _log,
        logging.ERROR,
        "route misconfigured in the proxy: its requests are refused until its 'scope' is corrected",
        problem=problem,
    )


def _log_flood(metrics: Metrics, prefix: str) -> None:
    metrics.add("sidecar_key_floods_total")
    log_event(_log, logging.WARNING, "refusing invalid API keys of one source", source=prefix)


def grpc_server(
    config: Config, methods: Sequence[Method], metrics: Metrics, turn: LoopTurn | None = None
) -> ListeningServer:
    """
    The gRPC server of the configured transport; grpcio is imported only if it is configured.

    The grpcio transport does not use *turn*.
    """
    limits = config.settings.transport_limits()
    addresses = endpoints(config, "grpc")
    if config.settings.transport == "grpcio":
        from sidecar.transports.reference import ReferenceGrpcServer

        return ReferenceGrpcServer(methods, addresses, limits, metrics)
    from sidecar.transports.fast import FastGrpcServer

    return FastGrpcServer(methods, addresses, limits, metrics, turn)


def forward_auth_server(config: Config, service: ForwardAuthService, metrics: Metrics) -> HttpServer:
    """The server of `listen.http`, which measures each request."""
    observe_ns = metrics.histogram("sidecar_request_duration_seconds", "http").observe_ns
    addresses, limits = endpoints(config, "http"), forward_auth_limits(config)
    return HttpServer(service.serve, addresses, metrics, DECIDING, limits, observe_ns)


def forward_auth_limits(config: Config) -> HttpLimits:
    """The limits of `listen.http`, for connections and calls the same as on gRPC listeners."""
    limits = config.settings.transport_limits()
    return HttpLimits(
        connections_max=limits.connections_max,
        connections_per_source_max=limits.connections_per_peer_max,
        requests_max=limits.calls_max,
        handshake_timeout_s=limits.handshake_timeout_s,
        write_timeout_s=limits.write_timeout_s,
        drain_idle_s=DRAIN_IDLE_S,
    )


def supervised_servers(
    config: Config, admin: AdminApp, metrics: Metrics, readiness: Readiness, pace: Pace
) -> dict[str, ListeningServer]:
    """The servers of `SUPERVISED_KINDS` at *pace*: *admin*, and an application without the admin API."""
    pages = AdminApp(metrics, readiness, pace)
    return {
        "admin": HttpServer(admin.serve, endpoints(config, "admin"), metrics, pace),
        "metrics": HttpServer(pages.serve, endpoints(config, "metrics"), metrics, pace),
    }


def warn(loaded: LoadedConfig) -> None:
    """Log warnings about the configuration."""
    for warning in loaded.rules.warnings:
        log_event(_log, logging.WARNING, "configuration warning", at=str(warning))

    if loaded.source is None and not loaded.config.has_control_plane:
        log_event(_log, logging.WARNING, "no registry: every API key is refused; set 'registry'")
    if loaded.rules.policy.shadow:
        log_event(
            _log,
            logging.WARNING,
            "enforcement is shadow: only unknown keys and suspended integrations are refused",
        )
    if not loaded.config.settings.routes:
        log_event(
            _log, logging.WARNING, "no routes: only paths whose scope the proxy states are open; set 'routes'"
        )
