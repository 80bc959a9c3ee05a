"""From settings to the rules of the domain."""

from __future__ import annotations

from pathlib import Path

import pytest

from sidecar.domain.cidr import AddressError, parse_address
from sidecar.domain.policy import Route
from sidecar.domain.scopes import Scope
from sidecar.process.config import load_config
from sidecar.process.rules import Rules, build_rules
from sidecar.sources.file_faults import FileFaultsError


def rules(tmp_path: Path, text: str) -> Rules:
    """The rules of a configuration."""
    path = tmp_path / "sidecar.yaml"
    path.write_text(text)
    return build_rules(load_config(path, {}))


def client(tmp_path: Path, text: str, peer: str = "203.0.113.9", **headers: str) -> bytes:
    """Who the client of a request is, by the configuration *text*."""
    found = {name.replace("_", "-"): value for name, value in headers.items()}
    return rules(tmp_path, text).policy.client_address.resolve(peer, found.get)


def test_rules__routes_in_order(tmp_path: Path) -> None:
    """The first route that matches wins; one method means a list; no methods are all."""
    text = """
routes:
  - {methods: GET, path: "/v1/orders/{id}", scope: orders:read}
  - {methods: [POST, PUT], path: /v1/orders/**, scope: orders:write}
  - {path: /v1/ping, scope: none}
"""
    table = rules(tmp_path, text).policy.routes
    assert table.find("GET", "/v1/orders/1") == Route(Scope("orders", "read"))
    assert table.find("PUT", "/v1/orders/1") == Route(Scope("orders", "write"))
    assert table.find("DELETE", "/v1/orders/1") is None
    assert table.find("PURGE", "/v1/ping") == Route(None)


def test_rules__a_hidden_route_is_a_warning(tmp_path: Path) -> None:
    """A route that can never match is reported with its line, and what hides it."""
    text = """
routes:
  - {methods: [GET], path: /v1/**, scope: orders:read}
  - {methods: [POST], path: /v1/**, scope: orders:write}
  - {methods: [GET, POST], path: /v1/orders, scope: none}
"""
    [warning] = rules(tmp_path, text).warnings
    assert str(warning) == (
        f"{tmp_path}/sidecar.yaml:5: routes[2]: never matches:"
        " routes[0] and routes[1] match first; move it up or remove it"
    )


@pytest.mark.parametrize("key", ["on_store_error: allow", "store_timeout_ms: 20"])
def test_rules__what_only_a_shared_store_needs_is_a_warning(tmp_path: Path, key: str) -> None:
    """A policy for a store that cannot fail is reported as without effect; with a shared store it has one."""
    [warning] = rules(tmp_path, key).warnings
    assert str(warning).startswith(f"{tmp_path}/sidecar.yaml:1: {key.split(':')[0]}: has no effect")
    assert rules(tmp_path, f"{key}\nstore: redis://127.0.0.1:1").warnings == ()


def test_rules__the_peer_is_the_client(tmp_path: Path) -> None:
    """By default no header is believed."""
    assert client(tmp_path, "", x_forwarded_for="192.0.2.1") == parse_address("203.0.113.9")
    assert client(tmp_path, "client_ip: peer", x_client_ip="192.0.2.1") == parse_address("203.0.113.9")


def test_rules__a_header_is_the_client(tmp_path: Path) -> None:
    """A header that the proxy sets is believed, no matter who the peer is."""
    text = "client_ip: {header: x-client-ip}"
    assert client(tmp_path, text, x_client_ip="192.0.2.1") == parse_address("192.0.2.1")
    with pytest.raises(AddressError, match="no header x-client-ip"):
        client(tmp_path, text)


def test_rules__the_standard_header_of_hops_is_refused(tmp_path: Path) -> None:
    """'forwarded' is no list of addresses: anyone who sets it learns at once what to set instead."""
    with pytest.raises(FileFaultsError, match="'forwarded', which is not supported"):
        rules(tmp_path, "client_ip: {header: forwarded, trusted_proxies: 10.0.0.0/8}")


def test_rules__a_chain_is_walked_past_trusted_proxies(tmp_path: Path) -> None:
    """With trusted proxies the header is a chain."""
    text = "client_ip: {header: x-forwarded-for, trusted_proxies: 10.0.0.0/8}"
    assert client(tmp_path, text, "10.0.0.1", x_forwarded_for="6.6.6.6, 192.0.2.1, 10.0.0.2") == (
        parse_address("192.0.2.1")
    )
    assert client(tmp_path, text, x_forwarded_for="192.0.2.1") == parse_address("203.0.113.9")


def test_rules__own_categories_replace_the_fifteen(tmp_path: Path) -> None:
    """A configuration with categories knows only those."""
    text = """
scope_categories:
  - {name: payroll, title: Pay, sensitivity: financial, read_only: true}
  - {name: stock}
routes: [{path: /v1/pay, scope: payroll:read}]
"""
    catalogue = rules(tmp_path, text).catalogue
    assert [category.title for category in catalogue.categories.values()] == ["Pay", "Stock"]
    assert catalogue.categories["payroll"].read_only
    with pytest.raises(FileFaultsError, match="unknown category 'orders'"):
        rules(tmp_path, text.replace("payroll:read", "orders:read"))


def test_rules__all_mistakes_of_rules_are_reported(tmp_path: Path) -> None:
    """Routes, categories and credentials, one list."""
    text = """
scope_categories: [{name: a}, {name: a}]
credentials: [{header: x-api-key}, {header: x-api-key}]
routes:
  - {path: /v1/pay, scope: a}
  - {path: /v1/pay, scope: b:read}
"""
    with pytest.raises(FileFaultsError) as caught:
        rules(tmp_path, text)
    assert [fault.field for fault in caught.value.faults] == [
        "scope_categories",
        "routes[0].scope",
        "routes[1].scope",
        "credentials[1]",
    ]


def test_rules__style_and_hint_follow_the_settings(tmp_path: Path) -> None:
    """A denial names the headers that are read."""
    text = """
unauthenticated_status: 401
ietf_headers: true
credentials: [authorization: Token, header: x-key]
"""
    style = rules(tmp_path, text).style
    assert (style.unauthenticated_status, style.ietf_headers) == (401, True)
    assert style.key_hint == "authorization: Token <key> or x-key: <key>"
