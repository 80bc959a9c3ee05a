"""The requests of a scenario: integrations with their keys, messages by kind, and the order of the draws."""

from __future__ import annotations

import random
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any

from envoy.service.ratelimit.v3.rls_pb2 import RateLimitRequest

from loadtest.bench.rate_limits import SHOULD_RATE_LIMIT
from loadtest.bench.workload import CHECK, CLIENT_ADDRESS, check_request, zipf_picks
from loadtest.driver.targets import Target
from loadtest.harness.scenario import KINDS, Scenario, ScenarioError, TargetSettings
from sidecar.domain.api_keys import checksum, digest_of
from sidecar.v1.decision_pb2 import DecideRequest

VALID, UNKNOWN, SUSPENDED, WRONG_SCOPE, FOREIGN_ADDRESS = range(len(KINDS))
FOREIGN = "203.0.113.9"
DECIDE = "/sidecar.v1.DecisionService/Decide"
DRAWS = 262_144
FOCUS = 2**32 - 1
"""A draw of the integration that is suspended next."""
VARIANTS_MAX = 1_000
"""At most so many integrations send requests that are not valid."""
_SHARED = IPv4Address("100.64.0.0")
_BASE62 = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"


@dataclass(frozen=True)
class Keys:
    """API keys by kind of their owner; the integration with number k has `valid[k]`."""

    valid: Sequence[str]
    suspended: Sequence[str]
    unknown: Sequence[str]


@dataclass(frozen=True)
class Workload:
    """
    The messages of a run.

    `method` is the gRPC method; '' = the messages are complete HTTP/1.1 requests. `kinds` has the kind of
    each message and `owners` its integration; `picks` are numbers of messages in the order of sending, or
    `FOCUS`.
    """

    method: str
    messages: list[bytes]
    kinds: bytes
    owners: array[int]
    picks: array[int]
    integrations: int


def make_keys(scenario: Scenario) -> Keys:
    """Return keys that depend on the seed alone, so that two runs send the same bytes."""
    source, traffic = random.Random(scenario.seed), scenario.traffic

    def keys(count: int) -> list[str]:
        return [_key(source) for _ in range(count)]

    suspended = VARIANTS_MAX if traffic.mix.suspended else 0
    unknown = traffic.unknown_keys if traffic.mix.unknown else 0
    return Keys(keys(traffic.integrations), keys(min(suspended, traffic.integrations)), keys(unknown))


def _key(source: random.Random) -> str:
    text = "".join(source.choices(_BASE62, k=40))
    body = f"sck_{text[:10]}_{text[10:]}"
    return body + checksum(body)


def read_keys(path: str) -> Keys:
    """
    Read a file with an API key in each line, then optionally a comma and the kind of its owner.

    Raises:
        ScenarioError: the file cannot be read, has no valid key, or names an unknown kind.
    """
    found: dict[str, list[str]] = {"valid": [], "suspended": [], "unknown": []}
    try:
        lines = Path(path).read_text().splitlines()
    except OSError as error:
        raise ScenarioError(f"target.keys: {error}") from None
    for number, line in enumerate(lines, 1):
        key, _, kind = (part.strip() for part in line.partition(","))
        if key and not key.startswith("#"):
            if (kind or "valid") not in found:
                raise ScenarioError(f"{path}:{number}: kind is {kind!r}; it must be {', '.join(found)}")
            found[kind or "valid"].append(key)
    if not found["valid"]:
        raise ScenarioError(f"{path} has no key; write one API key in each line")
    return Keys(**found)


def registry_records(scenario: Scenario, keys: Keys) -> list[dict[str, Any]]:
    """Return the integrations of *keys* as a registry file has them; the rate-limit service has none."""
    if scenario.protocol == "rls":
        return []
    source, records = random.Random(scenario.seed), []
    entries = scenario.traffic.allowlist_entries
    for kind, api_keys in (("", keys.valid), ("suspended", keys.suspended)):
        for number, key in enumerate(api_keys):
            networks = {f"10.{source.randrange(256)}.{source.randrange(256)}.0/24" for _ in range(entries)}
            allowed = [*sorted(networks)[: max(0, entries - 2)], "198.51.100.0/24", "127.0.0.0/8"]
            record = {
                "id": f"{kind or 'integration'}-{number:06}",
                "name": f"Integration {number}",
                "scopes": ["orders:read"],
                "rate_limit_rpm": scenario.limits.rpm,
                "burst": scenario.limits.burst,
                "ip_allowlist": allowed if entries else [],
                "credentials": [{"id": key.split("_")[1], "digest": digest_of(key)}],
            }
            records.append({**record, "status": kind} if kind else record)
    return records


def make_workload(scenario: Scenario, keys: Keys, target: Target, part: int = 0) -> Workload:
    """
    Return the messages of *scenario* to *target*, and the draws of driver process number *part*.

    Raises:
        ScenarioError: the scenario needs keys of a kind that *keys* does not have.
    """
    make = _Messages(scenario, target)
    by_kind: list[list[bytes]] = [[] for _ in KINDS]
    if scenario.protocol == "rls":
        by_kind[VALID] = [make.rate_limit(number) for number in range(scenario.traffic.integrations)]
    else:
        by_kind[VALID] = [make.request(key) for key in keys.valid[: scenario.traffic.integrations]]
        few = keys.valid[:VARIANTS_MAX]
        by_kind[UNKNOWN] = [
            make.request(key, address=_address(number % scenario.traffic.unknown_addresses))
            for number, key in enumerate(keys.unknown)
        ]
        by_kind[SUSPENDED] = [make.request(key) for key in keys.suspended]
        by_kind[WRONG_SCOPE] = [make.request(key, make.settings.wrong_scope_path) for key in few]
        by_kind[FOREIGN_ADDRESS] = [make.request(key, address=FOREIGN) for key in few]
    messages = [message for of_kind in by_kind for message in of_kind]
    kinds = bytes(kind for kind, of_kind in enumerate(by_kind) for _ in of_kind)
    owners = array("I", (number for of_kind in by_kind for number in range(len(of_kind))))
    picks = array("I", _picks(scenario, [len(of_kind) for of_kind in by_kind], part))
    return Workload(make.method, messages, kinds, owners, picks, len(by_kind[VALID]))


def _picks(scenario: Scenario, counts: Sequence[int], part: int) -> Iterator[int]:
    seed, mix = scenario.seed * 1_000 + part, scenario.traffic.mix
    firsts = [sum(counts[:kind]) for kind in range(len(counts))]
    for kind, share in enumerate(mix.shares):
        if share and not counts[kind]:
            raise ScenarioError(
                f"traffic.mix.{KINDS[kind]} is {share:g}, but there are no keys of that kind:"
                " add them to target.keys, or change traffic.mix"
            )
    source = random.Random(seed)
    drawn = source.choices(range(len(counts)), weights=mix.shares, k=DRAWS)
    valid, focus_share = (
        iter(zipf_picks(counts[VALID], DRAWS, scenario.traffic.zipf, seed)),
        scenario.traffic.focus_share,
    )
    for kind in drawn:
        if kind != VALID:
            yield firsts[kind] + source.randrange(counts[kind])
        else:
            yield FOCUS if source.random() < focus_share else next(valid)


class _Messages:
    """Makes the messages of a scenario's protocol."""

    def __init__(self, scenario: Scenario, target: Target) -> None:
        self.settings = scenario.target or TargetSettings(address="127.0.0.1:1")
        self._target = target
        self._protocol = scenario.protocol
        self.method = {"ext_authz": CHECK, "native": DECIDE, "rls": SHOULD_RATE_LIMIT}.get(
            scenario.protocol, ""
        )

    def request(self, key: str, path: str = "", address: str = CLIENT_ADDRESS) -> bytes:
        settings = self.settings
        method, path = settings.method, path or settings.path
        if self._protocol == "ext_authz":
            return check_request(key, path, address, method, settings.key_header)
        if self._protocol == "native":
            request = DecideRequest(method=method, path=path, client_ip=address)
            request.headers[settings.key_header] = key
            message: bytes = request.SerializeToString()
            return message
        headers = {settings.key_header: key, "user-agent": "loadtest/1", "accept": "*/*"}
        if self._protocol == "http":
            return _http(method, path, self._target.authority, headers)
        headers |= {
            "x-original-method": method,
            "x-original-uri": path,
            "x-real-ip": address,
            "x-forwarded-method": method,
            "x-forwarded-uri": path,
            "x-forwarded-for": address,
        }
        return _http("GET", self._target.path, self._target.authority, headers)

    def rate_limit(self, number: int) -> bytes:
        request = RateLimitRequest(domain=self.settings.domain, hits_addend=1)
        request.descriptors.add().entries.add(key=self.settings.entry, value=f"user-{number:06}")
        message: bytes = request.SerializeToString()
        return message


def _address(number: int) -> str:
    """Return the client's address 0, or another one of 100.64.0.0/10 (RFC 6598), in /24 by /24."""
    return str(_SHARED + (number % 2**14) * 2**8 + number // 2**14) if number else CLIENT_ADDRESS


def _http(method: str, path: str, host: str, headers: dict[str, str]) -> bytes:
    lines = "".join(f"{name}: {value}\r\n" for name, value in {"host": host, **headers}.items())
    return f"{method} {path} HTTP/1.1\r\n{lines}\r\n".encode()
