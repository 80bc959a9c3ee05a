"""The integrations of a run: made for it in a registry file of its own, or given with their API keys."""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import parse_qsl, quote, urlencode, urlsplit, urlunsplit

import yaml

from sidecar.domain.api_keys import NewApiKey, generate_api_key
from sidecar.process.settings import EMBEDDED_STORE
from sidecar.services.ext_authz_client import check_request, read_response
from sidecar.stores.redis.keys import DEFAULT_PREFIX
from sidecar.stores.redis.urls import parse_store_url
from sidecar.verify.accuracy import Terms
from sidecar.verify.callers import ask

METHOD, PATH, CALLER_ADDRESS = "GET", "/v1/verify-limits", "192.0.2.1"
ROUTES = [{"path": "/v1/**", "scope": "none"}]
BUCKETS_MAX = 1_000
PROBE_TIMEOUT_S = 10.0


class SubjectError(Exception):
    """A given API key cannot be used for a run; says what to do."""


@dataclass(frozen=True, slots=True)
class Subject:
    """One integration, its bucket's terms, and the Check message of its request."""

    integration_id: str
    terms: Terms
    message: bytes


def message_of(api_key: str) -> bytes:
    """The Check message of the request that a run asks about, with *api_key*."""
    return check_request(METHOD, PATH, {"x-api-key": api_key}, CALLER_ADDRESS)


def make_subjects(
    registry: Path, buckets: Mapping[str, Terms], keys: Sequence[NewApiKey] = ()
) -> list[Subject]:
    """
    Write *registry* with fresh integrations: *buckets* gives the terms of each, by its id.

    *keys* are their API keys; none = fresh ones.
    """
    records, subjects = [], []
    drawn = keys or [generate_api_key() for _ in buckets]
    for (integration_id, terms), key in zip(buckets.items(), drawn, strict=True):
        credential = {"id": key.credential_id, "digest": key.digest}
        record = {"id": integration_id, "name": integration_id, "credentials": [credential]}
        records.append({**record, "rate_limit_rpm": terms.limit_rpm, "burst": terms.burst})
        subjects.append(Subject(integration_id, terms, message_of(key.api_key)))
    registry.write_text(yaml.safe_dump({"integrations": records}))
    return subjects


async def probe_subject(target: str, api_key: str, limit_rpm: int, burst: int) -> Subject:
    """
    Find out by a real request whose key *api_key* is and what its bucket holds; that takes a token.

    Raises:
        SubjectError: the request is not admitted, or the limit is another one.
        OSError: the sidecar does not answer.
    """
    message = message_of(api_key)
    answer = await ask(target, message, PROBE_TIMEOUT_S)
    if not answer:
        raise SubjectError(f"{target} answers a Check with an error of gRPC: is it a sidecar's gRPC address?")
    checked = read_response(answer)
    if not checked.is_allowed:
        raise SubjectError(
            f"{target} answers {checked.status} {checked.reason} to {METHOD} {PATH}: a run needs keys of"
            " active integrations whose bucket is not empty, and a route that lets them in"
        )
    told = dict(checked.client_headers)
    if told.get("x-ratelimit-limit") != str(limit_rpm):
        raise SubjectError(
            f"{target} says that the limit is {told.get('x-ratelimit-limit')} a minute, not {limit_rpm}:"
            " give the limit and the burst of the keys with --limit and --burst"
        )
    held = min(burst, int(told["x-ratelimit-remaining"]) + 1)
    owner = dict(checked.upstream_headers)["x-integration-id"]
    return Subject(owner, Terms(limit_rpm, burst, held), message)


def own_prefix(store: str) -> str:
    """
    The URL *store* with a key prefix that nobody else uses, below the one that it has.

    >>> own_prefix("redis://127.0.0.1:6379/2?prefix=edge:").startswith(
    ...     "redis://127.0.0.1:6379/2?prefix=edge:verify-limits-")
    True
    """
    parts = urlsplit(store)
    options = dict(parse_qsl(parts.query, keep_blank_values=True))
    prefix = options.get("prefix", DEFAULT_PREFIX)
    options["prefix"] = f"{prefix}verify-limits-{secrets.token_hex(4)}:"
    return urlunsplit(parts._replace(query=urlencode(options, quote_via=quote, safe=":/,")))


def masked_store(store: str) -> str:
    """
    The URL *store* without user, password and options.

    >>> masked_store("redis://sid:secret@127.0.0.1/2?prefix=edge:")
    'redis://127.0.0.1:6379/2'
    """
    return store if store in ("", EMBEDDED_STORE) else str(parse_store_url(store))
