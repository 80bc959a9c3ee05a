"""What happens when a route of Envoy's states a scope that does not exist, or none."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from deploy.demo.envoy import Document, ingress_http
from tests.e2e.stack import Stack, StackKind
from tests.waiting import eventually

STATED = {"/v1/typo": "inventory:raed", "/v1/unknown": "stock:read", "/v1/empty": "", "/v1/open": "none"}


def _states(document: Document) -> None:
    """Give Envoy a route for each entry of `STATED`, in front of the others."""
    (host,) = ingress_http(document)["route_config"]["virtual_hosts"]
    for prefix, scope in STATED.items():
        authz = {
            "@type": "type.googleapis.com/envoy.extensions.filters.http.ext_authz.v3.ExtAuthzPerRoute",
            "check_settings": {"context_extensions": {"scope": scope}},
        }
        route = {"match": {"path_separated_prefix": prefix}, "route": {"cluster": "app"}}
        route["typed_per_filter_config"] = {"envoy.filters.http.ext_authz": authz}
        host["routes"].insert(0, route)


@pytest.fixture(scope="module")
def misconfigured() -> Iterator[Stack]:
    """A stack whose Envoy states the scopes of `STATED`."""
    stack = Stack(StackKind(unix=True, edit=_states))
    yield stack
    stack.close()


@pytest.mark.parametrize("prefix", ["/v1/typo", "/v1/unknown", "/v1/empty"])
def test_misconfigured_routes__are_refused_counted_and_logged(misconfigured: Stack, prefix: str) -> None:
    """The caller learns that it is not at fault, the operator which scope is wrong, in one line each."""
    for _ in range(3):
        answer = misconfigured.get(f"{prefix}/x", misconfigured.people.reader)
        assert (answer.status, answer.json()["reason"]) == (403, "route_misconfigured")
        assert "Your request is correct" in answer.json()["detail"]
    scope = STATED[prefix]

    def reported() -> list[str]:
        lines = misconfigured.sidecar.printed().splitlines()
        return [line for line in lines if "route misconfigured" in line and f"scope {scope!r} " in line]

    assert len(eventually(reported, what="the log names the scope")) == 1
    metrics = misconfigured.sidecar.admin("/metrics").body.decode()
    assert 'reason="route_misconfigured"' in metrics


def test_misconfigured_routes__none_means_the_same_as_in_the_route_list(misconfigured: Stack) -> None:
    """Any active integration may call; nobody else."""
    assert misconfigured.get("/v1/open/x", misconfigured.people.reader).status == 200
    assert misconfigured.get("/v1/open/x").status == 403
    suspended = misconfigured.get("/v1/open/x", misconfigured.people.suspended)
    assert suspended.json()["reason"] == "integration_suspended"
