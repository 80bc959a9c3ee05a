"""The TLS cluster of docs/integrate/envoy.md, on a real Envoy: both sides show a certificate."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
import yaml

from deploy.demo.calling import send
from deploy.demo.envoy import TCP_CONFIG, Document, Envoy, cluster, running_envoy
from deploy.demo.sidecar import Owner, ReservedPort, Sidecar, write_registry
from deploy.demo.upstream import running_upstream
from tests.certificates import AuthorityFolder
from tests.e2e.stack import wait_long
from tests.house.source import text_of

OWNER = Owner("reader", "Reader", scopes=["inventory:read"])


def transport_socket(authority: AuthorityFolder, folder: Path, name: str) -> Document:
    """What docs/integrate/envoy.md adds to the cluster, with *name*'s pair and our certificates."""
    page = text_of("docs/integrate/envoy.md").split("## TLS to the sidecar")[1]
    text = page.split("```yaml")[2].split("```")[0]  # the first one is the sidecar's
    text = text.replace("sidecar.example", "localhost").replace("/etc/envoy/ca.crt", str(authority.ca))
    text = text.replace("/etc/envoy/client", str(folder / name))
    document: Document = yaml.safe_load(text)
    return document


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, AuthorityFolder, int, int]]:
    """A sidecar that asks for certificates, and an API: folder, authority, both ports."""
    folder = tmp_path_factory.mktemp("tls")
    authority = AuthorityFolder(folder)
    certificate, key = authority.sign("sidecar")
    write_registry(folder / "registry.yaml", [OWNER])
    with ExitStack() as running:
        app_port = running.enter_context(running_upstream())
        port = ReservedPort()
        running.callback(port.close)
        tls = {"cert": str(certificate), "key": str(key), "client_ca": str(authority.ca)}
        address = f"127.0.0.1:{port.number}"
        listen = {"grpc": [{"address": address, "tls": tls}], "admin": f"unix:{folder}/sidecar.sock"}
        running.enter_context(Sidecar(folder, address, folder / "registry.yaml", listen=listen))
        yield folder, authority, app_port, port.number


def envoy(parts: tuple[Path, AuthorityFolder, int, int], name: str, socket: Document | None) -> Envoy:
    """An Envoy whose sidecar cluster has this transport socket."""
    folder, _, app_port, port = parts

    def edit(document: Document) -> None:
        wait_long(document)
        if socket is not None:
            cluster(document, "sidecar").update(socket)

    return running_envoy(TCP_CONFIG, app_port, f"127.0.0.1:{port}", folder, edit, name)


def test_envoy_tls__the_documented_cluster_works(parts: tuple[Path, AuthorityFolder, int, int]) -> None:
    """Requests are checked, and the sidecar's health is seen, over mutual TLS."""
    folder, authority, _, _ = parts
    authority.sign("client")
    with envoy(parts, "envoy", transport_socket(authority, folder, "client")) as running:
        answer = send(running.port, "GET", "/v1/inventory/42", OWNER.headers)
        assert answer.status == 200
        refused = send(running.port, "GET", "/v1/inventory/42")
        assert json.loads(refused.body)["reason"] == "missing_credential"
        assert running.stat("cluster.sidecar.ssl.handshake") > 0


def test_envoy_tls__others_are_kept_out(parts: tuple[Path, AuthorityFolder, int, int]) -> None:
    """Plain text, a foreign client certificate and a sidecar of another name all fail closed, with 503."""
    folder, authority, _, _ = parts
    stranger = folder / "foreign"
    stranger.mkdir()
    AuthorityFolder(stranger, "other").sign("client")
    foreign = transport_socket(authority, stranger, "client")
    authority.sign("client")
    renamed = json.loads(
        json.dumps(transport_socket(authority, folder, "client")).replace("localhost", "elsewhere.example")
    )
    for name, socket in (("plain", None), ("foreign", foreign), ("renamed", renamed)):
        with envoy(parts, name, socket) as running:
            assert send(running.port, "GET", "/v1/inventory/42", OWNER.headers).status == 503
