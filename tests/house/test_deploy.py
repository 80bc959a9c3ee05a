"""deploy/: what cannot be run here is checked against schemas, and its parts agree with each other."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import kubernetes_validate
import pytest
import yaml

from sidecar.observe.build import VERSION
from sidecar.process.config import load_config
from tests.house.source import ROOT

KUBERNETES = ROOT / "deploy" / "kubernetes"
SHAPES = ("shared", "beside-envoy")
KUBERNETES_VERSION = "1.29"
"""The oldest version with sidecar containers (restartPolicy of an init container)."""
OF_OPERATORS = ("Kustomization", "ServiceMonitor")
"""Kinds whose schemas are not Kubernetes' own."""


def objects_of(shape: str) -> Iterator[dict[str, Any]]:
    """Every object that `kubectl apply --kustomize` would create from the files of *shape*."""
    folder = KUBERNETES / shape
    for name in yaml.safe_load((folder / "kustomization.yaml").read_text())["resources"]:
        yield from yaml.safe_load_all((folder / name).read_text())


def containers_of(shape: str) -> list[dict[str, Any]]:
    """The containers of *shape*'s only Deployment, init containers first."""
    (deployment,) = [each for each in objects_of(shape) if each["kind"] == "Deployment"]
    pod = deployment["spec"]["template"]["spec"]
    return [*pod.get("initContainers", ()), *pod["containers"]]


@pytest.mark.parametrize("shape", SHAPES)
def test_kubernetes__objects_follow_the_schemas(shape: str) -> None:
    """No unknown field and no wrong type in any object."""
    for each in objects_of(shape):
        if each["kind"] not in OF_OPERATORS:
            kubernetes_validate.validate(each, KUBERNETES_VERSION, strict=True)


@pytest.mark.parametrize("shape", SHAPES)
def test_kubernetes__configuration_is_valid(shape: str) -> None:
    """The sidecar accepts the configuration, and the container has every port that it listens on."""
    config = load_config(KUBERNETES / shape / "sidecar.yaml", {})
    container = next(each for each in containers_of(shape) if each["name"] == "sidecar")
    listen = config.settings.listen
    items = (*listen.grpc, *listen.http, *listen.metrics)
    ports = {int(port) for item in items if (port := str(item.address).rpartition(":")[2]).isdigit()}
    assert ports == {port["containerPort"] for port in container["ports"]}


@pytest.mark.parametrize("shape", SHAPES)
def test_kubernetes__volumes_and_ports_exist(shape: str) -> None:
    """Every mount names a volume of the pod, and every probe a port of its container."""
    (deployment,) = [each for each in objects_of(shape) if each["kind"] == "Deployment"]
    volumes = {volume["name"] for volume in deployment["spec"]["template"]["spec"]["volumes"]}
    for container in containers_of(shape):
        assert {mount["name"] for mount in container["volumeMounts"]} <= volumes
        ports = {port["name"] for port in container["ports"]}
        for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
            for check in container.get(probe, {}).values():
                assert not isinstance(check, dict) or check["port"] in ports
        if container["name"] == "sidecar":
            assert container["image"] == f"sidecar:{VERSION}"


def test_container__has_what_it_copies() -> None:
    """Every file that the Containerfile copies exists, and .containerignore lets it through."""
    text = (ROOT / "deploy" / "container" / "Containerfile").read_text()
    admitted = re.findall(r"^!(\S+)$", (ROOT / ".containerignore").read_text(), re.MULTILINE)
    copied = [
        name
        for line in re.findall(r"^COPY (?!--from)(.+)$", text, re.MULTILINE)
        for name in line.split()[:-1]
    ]
    assert copied
    for name in copied:
        assert (ROOT / name).exists(), name
        assert name in admitted, name
    assert re.search(r"^USER 65532:65532$", text, re.MULTILINE)
