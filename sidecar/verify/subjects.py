"""The integrations of a run: created in a registry file, or existing ones given by their API keys."""

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
    """A given API key cannot be used for a run; the message says what to do."""


@dataclass(frozen=True, slots=True)
class Subject:
    """One integration, its bucket's terms, and the Check message of its request."""

    integration_id: str
    terms: Terms
    message: bytes


def message_of(api_key: str) -> bytes:
    """The Check message of a run's request, with *api_key*."""
    return check_request(METHOD, PATH, {"x-api-key": api_key}, CALLER_ADDRESS)


def make_subjects(
    registry: Path, buckets: Mapping[str, Terms], keys: Sequence[NewApiKey] = ()
) -> list[Subject]:
    """
    Write new integrations to *registry*: *buckets* gives the terms by integration id.

    *keys* are their API keys; () = generate them.
    """
    records, subjects = [], []
    api_keys = keys or [generate_api_key() for _ in buckets]
    for (integration_id, terms), key in zip(buckets.items(), api_keys, strict=True):
        credential = {"id": key.credential_id, "digest": key.digest}
        record = {"id": integration_id, "name": integration_id, "credentials": [credential]}
        records.append({**record, "rate_limit_rpm": terms.limit_rpm, "burst": terms.burst})
        subjects.append(Subject(integration_id, terms, message_of(key.api_key)))
    registry.write_text(yaml.safe_dump({"integrations": records}))
    return subjects


async def probe_subject(target: str, api_key: str, limit_rpm: int, burst: int) -> Subject:
    """
    Learn the integration of *api_key* and its bucket's level from a real request, which takes a token.

    Raises:
        SubjectError: the request is not admitted, or the limit is not *limit_rpm*.
        OSError: the sidecar does not answer.
    """
    message = message_of(api_key)
    answer = await ask(target, message, PROBE_TIMEOUT_S)
    if not answer:
        raise SubjectError(f"{target} answers with a gRPC error: is it a sidecar's gRPC address?")
    checked = read_response(answer)
    if not checked.is_allowed:
        raise SubjectError(
            f"{target} answers {checked.status} {checked.reason} to {METHOD} {PATH}: a run needs keys of"
            " active integrations whose bucket is not empty, and a route that they may use"
        )
    headers = dict(checked.client_headers)
    if headers.get("x-ratelimit-limit") != str(limit_rpm):
        raise SubjectError(
            f"the limit at {target} is {headers.get('x-ratelimit-limit')} per minute, not {limit_rpm}: set"
            " --limit and --burst to those of the keys"
        )
    held = min(burst, int(headers["x-ratelimit-remaining"]) + 1)
    owner = dict(checked.upstream_headers)["x-integration-id"]
    return Subject(owner, Terms(limit_rpm, burst, held), message)


def own_prefix(store: str) -> str:
    """
    The URL *store* with a unique key prefix, below its own prefix.

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
