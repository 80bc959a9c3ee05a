"""
The golden cases of the rate-limit service: what a call means, and what its answer is, as text.

    for case in CASES: play(case.steps_of("token_bucket"), ask)
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from envoy.service.ratelimit.v3.rls_pb2 import RateLimitRequest, RateLimitResponse

from sidecar.domain.rate_limits.counters import Algorithm
from sidecar.domain.rate_limits.decisions import LimitStyle
from sidecar.domain.rate_limits.rules import RateLimits
from sidecar.sources.file_faults import FaultList
from sidecar.sources.rate_limit_nodes import RateLimitReader

FILE = Path(__file__).parent / "fixtures" / "rate_limits" / "golden.txt"
NOW_S = 1_795_000_000
"""No two units begin together here."""
UNITS = {name.lower(): number for name, number in RateLimitResponse.RateLimit.Unit.items()}
SECONDS = {
    "second": 1, "minute": 60, "hour": 3_600, "day": 86_400, "week": 604_800, "month": 2_592_000,
    "year": 31_536_000,
}  # fmt: skip
VARIANTS = ("fixed_window", "all_or_none", "token_bucket")
"""The original's way; fixed windows that count a refused call not at all; token buckets."""

Ask = Callable[[RateLimitRequest], Any]
"""Sends a request; returns the response, or None where the call failed."""


@dataclass
class GoldenCase:
    """One file, and calls in their order with their answers."""

    name: str
    config: str = ""
    has_headers: bool = False
    steps: dict[str, str] = field(default_factory=dict)

    @property
    def domain(self) -> str:
        """The domain of the file."""
        return self.name[:3].lower()

    def steps_of(self, variant: str) -> list[tuple[str, str]]:
        """Calls and answers, each as text."""
        kinds = {"fixed_window": (), "all_or_none": ("aon",), "token_bucket": ("bucket", "aon")}[variant]
        text = next((self.steps[kind] for kind in kinds if kind in self.steps), self.steps["steps"])
        pairs = [step.strip().split(" => ") for step in text.split(";;")]
        return [(call, answer.strip()) for call, answer in pairs]


def load_cases() -> list[GoldenCase]:
    """Every case of the file."""
    cases: list[GoldenCase] = []
    for line in FILE.read_text().splitlines():
        kind, _, rest = line.partition(" ")
        if kind == "case":
            cases.append(GoldenCase(rest))
        elif kind == "cfg":
            cases[-1].config = rest
        elif kind == "env":
            cases[-1].has_headers = rest == "LIMIT_RESPONSE_HEADERS_ENABLED=true"
        elif kind in ("steps", "aon", "bucket"):
            cases[-1].steps[kind] = rest
    return cases


CASES = load_cases()


def request_of(text: str, domain: str) -> RateLimitRequest:
    """The request that *text* describes."""
    elsewhere = re.match(r"in ([^:]*): ", text)
    if elsewhere is not None:
        domain, text = elsewhere[1].strip(), text[elsewhere.end() :]
    text, _, hits = text.partition(" @")
    request = RateLimitRequest(domain=domain, hits_addend=int(hits or 0))
    for part in () if text == "NONE" else text.split("|"):
        _add_descriptor(request, part.strip())
    return request


def _add_descriptor(request: RateLimitRequest, text: str) -> None:
    descriptor = request.descriptors.add()
    text, *options = text.split("~")
    for option in options:
        if option.startswith("h"):
            descriptor.hits_addend.value = int(option[1:])
        else:
            number, _, unit = option[1:].partition("/")
            descriptor.limit.requests_per_unit = int(number)
            descriptor.limit.unit = UNITS[unit]
    for entry in () if text == "EMPTY" else text.split(","):
        key, _, value = entry.partition("=")
        descriptor.entries.add(key=key, value=value)


def text_of(response: Any) -> str:
    """*response* as the file writes it."""
    if response is None:
        return "ERR"
    statuses = " | ".join(map(_status_text, response.statuses))
    text = f"{_code(response.overall_code)} [{statuses}]"
    headers = {header.key: header.value for header in response.response_headers_to_add}
    if headers:
        text += f" H {headers['RateLimit-Limit']}/{headers['RateLimit-Remaining']}"
    return text


def _status_text(status: Any) -> str:
    if not status.HasField("current_limit"):
        return "U" if status.limit_remaining == 2**32 - 1 else "-"
    limit = status.current_limit
    unit = RateLimitResponse.RateLimit.Unit.Name(limit.unit).lower()
    text = f"{_code(status.code)} {limit.requests_per_unit}/{unit} r{status.limit_remaining} {limit.name}"
    return text.strip()


def _code(code: int) -> str:
    return {RateLimitResponse.OK: "OK", RateLimitResponse.OVER_LIMIT: "OVER"}[code]


def play(case: GoldenCase, variant: str, ask: Ask) -> None:
    """Send the calls of *case* by *ask* and hold each answer against the file."""
    for call, answer in case.steps_of(variant):
        times = re.match(r"(\d+)\* ", call)
        response = None
        for _ in range(int(times[1]) if times else 1):
            response = ask(request_of(call[times.end() :] if times else call, case.domain))
        assert text_of(response) == answer, call
        if response is not None and variant != "token_bucket":
            check_resets(response)


def check_resets(response: Any, now_s: int = NOW_S) -> None:
    """A window ends at the next multiple of its unit; what has no limit has no end."""
    for status in response.statuses:
        if not status.HasField("current_limit"):
            assert not status.HasField("duration_until_reset")
            continue
        unit_s = SECONDS[RateLimitResponse.RateLimit.Unit.Name(status.current_limit.unit).lower()]
        assert status.duration_until_reset.seconds == unit_s - now_s % unit_s
        assert status.duration_until_reset.nanos == 0


def style_of(case: GoldenCase, variant: str) -> LimitStyle:
    """How the calls of *case* are counted and answered in *variant*."""
    headers = ("RateLimit-Limit", "RateLimit-Remaining", "RateLimit-Reset") if case.has_headers else None
    return LimitStyle(all_or_none=variant == "all_or_none", headers=headers)


def read_limits(
    *files: str, algorithm: Algorithm = Algorithm.FIXED_WINDOW, merges: bool = False
) -> RateLimits:
    """The rules in *files*, which hold no mistake."""
    faults = FaultList("limits")
    reader = RateLimitReader(faults, lambda domain: algorithm, merges)
    for number, text in enumerate(files):
        reader.read(text.encode(), f"limits/{number}.yaml")
    faults.raise_any()
    return reader.limits()


def limits_of(case: GoldenCase, variant: str) -> RateLimits:
    """The rules of *case* in *variant*."""
    is_bucket = variant == "token_bucket"
    return read_limits(case.config, algorithm=Algorithm.TOKEN_BUCKET if is_bucket else Algorithm.FIXED_WINDOW)
