"""The configuration: where it comes from, what wins, what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from sidecar.domain.cidr import parse_cidr
from sidecar.process.checking import check
from sidecar.process.config import Config, load_config
from sidecar.process.config_source import (
    CONFIG_BYTES_MAX,
    ConfigTree,
    add_environment,
    dotted,
    settings_of,
    variable,
)
from sidecar.process.settings import Settings
from sidecar.sources.file_faults import FaultList, FileFaultsError
from sidecar.transports.server import Endpoint, TlsFiles, TransportLimits
from tests.house.source import ROOT

FIXTURES = ROOT / "tests" / "fixtures" / "config"


def load(tmp_path: Path, text: str = "", environ: dict[str, str] | None = None) -> Config:
    """The configuration of a file with *text*."""
    path = tmp_path / "sidecar.yaml"
    path.write_text(text)
    return load_config(path, environ or {})


def refusal(tmp_path: Path, text: str = "", environ: dict[str, str] | None = None) -> list[str]:
    """What is reported about a configuration that is not accepted; its file is called FILE."""
    with pytest.raises(FileFaultsError) as caught:
        load(tmp_path, text, environ)
    return [line.replace(str(tmp_path / "sidecar.yaml"), "FILE") for line in caught.value.lines()]


def test_config__an_empty_file_works(tmp_path: Path) -> None:
    """Every key has a default, and the defaults are production's: loopback, deny, no store elsewhere."""
    settings = load(tmp_path).settings
    assert settings == Settings()
    assert [str(item.address) for item in settings.listen.grpc] == ["127.0.0.1:9191"]
    assert [str(item.address) for item in settings.listen.admin] == ["127.0.0.1:9193"]
    assert (settings.transport, settings.store, settings.registry) == ("fast", "embedded:", None)
    assert (settings.unauthenticated_status, settings.ietf_headers) == (403, False)
    assert settings.client_ip.header is None
    assert [(credential.header, credential.scheme) for credential in settings.credentials] == [
        ("x-api-key", None),
        ("authorization", "Bearer"),
    ]
    assert settings.drain_timeout_s == 10.0


def test_config__limits_are_those_of_the_transports() -> None:
    """The defaults of the wire's bounds have one owner, and every bound can be set."""
    assert Settings().transport_limits() == TransportLimits()
    changed = Settings.model_validate({"limits": {"calls_max": 7, "idle_timeout_s": 1}})
    assert changed.transport_limits() == TransportLimits(calls_max=7, idle_timeout_s=1.0)


def test_config__every_form_of_a_listener(tmp_path: Path) -> None:
    """Text, a list of texts, a mapping with TLS; files are relative to the configuration."""
    config = load(
        tmp_path,
        """
listen:
  grpc:
    - unix:/run/sidecar.sock
    - address: "[::1]:0"
      tls: {cert: a.pem, key: a.key, client_ca: /etc/ca.pem}
  admin: 127.0.0.1:0
""",
    )
    assert [item.address for item in config.settings.listen.grpc] == [
        Endpoint(path="/run/sidecar.sock"),
        Endpoint("::1", 0),
    ]
    assert config.tls_files("grpc", 0) is None
    assert config.tls_files("grpc", 1) == TlsFiles(
        tmp_path / "a.pem", tmp_path / "a.key", Path("/etc/ca.pem")
    )
    assert config.tls_files("admin", 0) is None


def test_config__the_environment_wins(tmp_path: Path) -> None:
    """A variable replaces exactly its key, inside a section too."""
    text = "listen: {grpc: 127.0.0.1:1, admin: 127.0.0.1:2}\ndrain_timeout_s: 5\nregistry: a.yaml\n"
    environ = {
        "SIDECAR_LISTEN__ADMIN": "127.0.0.1:3",
        "SIDECAR_DRAIN_TIMEOUT_S": "0.5",
        "SIDECAR_REGISTRY": "2024",
        "SIDECAR_IETF_HEADERS": "true",
        "SIDECAR_LIMITS__CALLS_MAX": "9",
    }
    settings = load(tmp_path, text, environ).settings
    assert [item.address.port for item in (*settings.listen.grpc, *settings.listen.admin)] == [1, 3]
    assert (settings.drain_timeout_s, settings.registry, settings.ietf_headers) == (0.5, "2024", True)
    assert settings.transport_limits().calls_max == 9


def test_config__json_in_the_environment(tmp_path: Path) -> None:
    """Lists and mappings come as JSON, and whole sections too."""
    environ = {
        "SIDECAR_LISTEN__GRPC": '["127.0.0.1:1", {"address": "127.0.0.1:2"}]',
        "SIDECAR_CLIENT_IP": '{"header": "x-forwarded-for", "trusted_proxies": ["10.0.0.0/8"]}',
        "SIDECAR_ROUTES": '[{"path": "/v1/**", "methods": ["GET"], "scope": "orders:read"}]',
    }
    settings = load(tmp_path, "client_ip: {header: x-client-ip}", environ).settings
    assert [item.address.port for item in settings.listen.grpc] == [1, 2]
    assert settings.client_ip.trusted_proxies == (parse_cidr("10.0.0.0/8"),)
    assert [str(route.path) for route in settings.routes] == ["/v1/**"]


def test_config__a_variable_inside_a_section_joins_the_rest(tmp_path: Path) -> None:
    """A section given whole and one of its keys given alone make one section."""
    environ = {"SIDECAR_LIMITS": '{"calls_max": 1, "connections_max": 2}', "SIDECAR_LIMITS__CALLS_MAX": "3"}
    limits = load(tmp_path, "", environ).settings.transport_limits()
    assert limits == TransportLimits(calls_max=3, connections_max=2)


def test_config__a_variable_replaces_a_short_form(tmp_path: Path) -> None:
    """`client_ip: peer` in the file gives way to its keys in the environment."""
    settings = load(tmp_path, "client_ip: peer", {"SIDECAR_CLIENT_IP__HEADER": "x-client-ip"}).settings
    assert settings.client_ip.header == "x-client-ip"


@pytest.mark.parametrize("path", [path for path, _ in settings_of(Settings)], ids=dotted)
def test_config__every_key_is_a_variable(path: tuple[str, ...]) -> None:
    """Each key of the model, and each section, reaches its place from the environment."""
    tree, faults = ConfigTree("FILE"), FaultList("FILE")
    add_environment(tree, {variable(path): "text"}, Settings, faults)
    value: object = tree.values
    for part in path:
        assert isinstance(value, dict)
        value = value[part]
    assert (value in ("text", ("text",)), len(faults)) == (True, 0)


@pytest.mark.parametrize(
    "name", ["SIDECAR_CONFIG", "SIDECAR_API_KEY", "SIDECAR_SERVER", "SIDECAR_ADMIN_TOKEN", "SIDECARD"]
)
def test_config__variables_of_others_are_left_alone(tmp_path: Path, name: str) -> None:
    """The command line has separate variables."""
    assert load(tmp_path, environ={name: "x"}).settings == Settings()


def service_links(service: str, address: str, port: int, protocol: str = "tcp") -> dict[str, str]:
    """What Kubernetes puts into the environment of every pod for one Service."""
    host = f"[{address}]" if ":" in address else address
    url, by_port = f"{protocol}://{host}:{port}", f"{service}_PORT_{port}_{protocol.upper()}"
    return {
        f"{service}_SERVICE_HOST": address,
        f"{service}_SERVICE_PORT": str(port),
        f"{service}_SERVICE_PORT_HTTP": str(port),
        f"{service}_SERVICE_PORT_GRPC_WEB": str(port),
        f"{service}_PORT": url,
        by_port: url,
        f"{by_port}_PROTO": protocol,
        f"{by_port}_PORT": str(port),
        f"{by_port}_ADDR": address,
    }


@pytest.mark.parametrize(
    "service", ["SIDECAR", "SIDECAR_CACHE", "SIDECAR_SERVICE", "SIDECAR_PORT_80", "SIDECAR_2"]
)
@pytest.mark.parametrize("address", ["10.0.0.1", "fd00::1"])
@pytest.mark.parametrize("protocol", ["tcp", "udp", "sctp"])
def test_config__service_links_are_ignored(tmp_path: Path, service: str, address: str, protocol: str) -> None:
    """Kubernetes sets some of our prefix for each Service called sidecar or sidecar-anything."""
    links = service_links(service, address, 80, protocol)
    assert load(tmp_path, environ=links).settings == Settings()


@pytest.mark.parametrize(
    ("name", "value"),
    [("SIDECAR_ADMIN_PORT", "9193"), ("SIDECAR_CACHE_SERVICE_HOST", "cache.example"),
     ("SIDECAR_SERVICE_PORT", "tcp:/x"), ("SIDECAR_CACHE_PORT_80_TCP", "80"),
     ("SIDECAR_CACHE_NAME", "10.0.0.1")],
)  # fmt: skip
def test_config__only_the_form_of_a_service_link_is_ignored(tmp_path: Path, name: str, value: str) -> None:
    """A setting that does not exist stays a mistake, whatever it is called."""
    [reported] = refusal(tmp_path, environ={name: value})
    assert reported.startswith(f"{name}: is not a setting")


@pytest.mark.parametrize(
    ("value", "addresses"),
    [
        ("[::]:9194", ["[::]:9194"]),
        ("[::1]:1,127.0.0.1:2", ["[::1]:1", "127.0.0.1:2"]),
        ("127.0.0.1:2, [fe80::1]:3", ["127.0.0.1:2", "[fe80::1]:3"]),
        ('["[::]:9194"]', ["[::]:9194"]),
        ("['[::]:9194', '127.0.0.1:1']", ["[::]:9194", "127.0.0.1:1"]),
        ('{"address": "[::]:9194"}', ["[::]:9194"]),
        ("- '[::]:9194'\n- 127.0.0.1:1\n", ["[::]:9194", "127.0.0.1:1"]),
        ("unix:/run/x.sock", ["unix:/run/x.sock"]),
        ("[]", []),
    ],
)
def test_config__lists_in_the_environment(tmp_path: Path, value: str, addresses: list[str]) -> None:
    """Addresses, IPv6 ones included, with commas, as JSON or as YAML."""
    listen = load(tmp_path, environ={"SIDECAR_LISTEN__METRICS": value}).settings.listen
    assert [str(item.address) for item in listen.metrics] == addresses


@pytest.mark.parametrize(
    ("name", "value", "read"),
    [
        (
            "SIDECAR_ROUTES",
            '{"path": "/v1/**", "scope": "orders:read"}',
            lambda settings: len(settings.routes),
        ),
        ("SIDECAR_ROUTES", "- path: /v1/**\n  scope: none\n", lambda settings: len(settings.routes)),
        ("SIDECAR_CREDENTIALS", "{authorization: Bearer}", lambda settings: len(settings.credentials)),
        ("SIDECAR_SCOPE_CATEGORIES", "{name: orders}", lambda settings: len(settings.scope_categories)),
        ("SIDECAR_LOG", "{level: debug}", lambda settings: settings.log.level == "debug"),
        ("SIDECAR_LIMITS", "calls_max: 1\nconnections_max: 2", lambda settings: settings.limits.calls_max),
    ],
)
def test_config__mappings_in_the_environment(
    tmp_path: Path, name: str, value: str, read: Callable[[Settings], object]
) -> None:
    """Mappings come as JSON or as YAML, and one of them means a list of it."""
    assert read(load(tmp_path, environ={name: value}).settings) == 1


def test_config__files_of_the_store_url_are_relative_to_the_configuration(tmp_path: Path) -> None:
    """Password and TLS files are found wherever the sidecar is started; absolute paths stay."""
    options = "password_file=password&ca_file=/etc/ca.pem&cert_file=client.pem&key_file=client.key"
    url = load(tmp_path, f"store: rediss://db?{options}").shared_store
    assert url is not None and url.tls is not None
    assert url.login.password_file == str(tmp_path / "password")
    assert (url.tls.ca_file, url.tls.cert_file) == ("/etc/ca.pem", str(tmp_path / "client.pem"))
    (tmp_path / "password").write_text("secret")
    assert url.login.read() == ("secret",)


def test_config__an_empty_variable_is_not_set(tmp_path: Path) -> None:
    """What a template left empty changes nothing."""
    assert load(tmp_path, "transport: grpcio", {"SIDECAR_TRANSPORT": ""}).settings.transport == "grpcio"


@pytest.mark.parametrize(
    ("environ", "reported"),
    [
        (
            {"SIDECAR_LISTEN__GRCP": "x"},
            "SIDECAR_LISTEN__GRCP: is not a setting; did you mean SIDECAR_LISTEN__GRPC?",
        ),
        (
            {"SIDECAR_XYZZY": "x"},
            "SIDECAR_XYZZY: is not a setting; unset it, or see docs/reference/configuration.md for the"
            " settings"
            " (in Kubernetes, 'enableServiceLinks: false' in the pod keeps variables of Services out)",
        ),
        (
            {"SIDECAR_LISTEN__METRICS": "[::1]"},
            "SIDECAR_LISTEN__METRICS: listen.metrics: endpoint '[::1]': the port is missing;"
            " write 'host:port' or 'unix:/path'",
        ),
        (
            {"SIDECAR_LISTEN__METRICS": "127.0.0.1:1,127.0.0.1"},
            "SIDECAR_LISTEN__METRICS: listen.metrics: endpoint '127.0.0.1': the port is missing;"
            " write 'host:port' or 'unix:/path'",
        ),
        (
            {"SIDECAR_listen__grpc": "127.0.0.1:1"},
            "SIDECAR_listen__grpc: is not a setting; did you mean SIDECAR_LISTEN__GRPC?",
        ),
        (
            {"SIDECAR_LISTEN__METRICS": "[[::]:9194]"},
            "SIDECAR_LISTEN__METRICS: a key must be plain text: '[[::]:9194]';"
            " write JSON, with every address in quotes",
        ),
        (
            {"SIDECAR_DRAIN_TIMEOUT_S": "soon"},
            "SIDECAR_DRAIN_TIMEOUT_S: drain_timeout_s: must be a number, not 'soon'",
        ),
        (
            {"SIDECAR_LISTEN__GRPC": '["127.0.0.1"]'},
            "SIDECAR_LISTEN__GRPC: listen.grpc: endpoint '127.0.0.1': the port is missing;"
            " write 'host:port' or 'unix:/path'",
        ),
        (
            {"SIDECAR_ROUTES": "[{]"},
            "SIDECAR_ROUTES: not YAML: while parsing a flow node, did not find expected node content:"
            " '[{]'; write JSON, with every address in quotes",
        ),
    ],
)
def test_config__a_mistake_in_the_environment_names_its_variable(
    tmp_path: Path, environ: dict[str, str], reported: str
) -> None:
    """The variable is where the file and line would."""
    assert refusal(tmp_path, environ=environ) == [reported]


def test_config__all_mistakes_are_reported_at_once(tmp_path: Path) -> None:
    """File and environment, one list."""
    reported = refusal(
        tmp_path,
        "transport: slow\nlog:\n  level: loud\n",
        {"SIDECAR_DRAIN_TIMEOUT_S": "-1", "SIDECAR_NO": "1"},
    )
    assert [line.split(" ")[0] for line in reported] == [
        "SIDECAR_NO:",
        "FILE:1:",
        "SIDECAR_DRAIN_TIMEOUT_S:",
        "FILE:3:",
    ]


def expected_of(path: Path) -> list[str]:
    """The lines '# expected: ...' at the head of a fixture."""
    lines = path.read_text().splitlines()
    return [line.removeprefix("# expected: ") for line in lines if line.startswith("# expected: ")]


@pytest.mark.parametrize("path", sorted(FIXTURES.glob("*.yaml")), ids=lambda path: path.stem)
def test_config__each_mistake_is_reported(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each mistake names file, line, key and remedy; '...' means the words of a parser below us."""
    monkeypatch.chdir(ROOT)
    file = path.relative_to(ROOT)
    with pytest.raises(FileFaultsError) as caught:
        check(file)
    reported = [
        line.replace(str(file), "FILE").replace(str(file.parent), "DIRECTORY")
        for line in caught.value.lines()
    ]
    expected = expected_of(path)
    assert len(reported) == len(expected)
    for line, wanted in zip(reported, expected, strict=True):
        assert line.startswith(wanted[:-3]) if wanted.endswith("...") else line == wanted


def test_config__no_mistake_shows_a_password() -> None:
    """A store's address is reported by its scheme alone."""
    path = FIXTURES / "store-unknown-keeps-its-password.yaml"
    assert "hunter2" in path.read_text()
    with pytest.raises(FileFaultsError) as caught:
        load_config(path, {})
    assert "hunter2" not in str(caught.value)


def test_config__files_that_cannot_be_read(tmp_path: Path) -> None:
    """A missing file and one that is no text are reported, not raised."""
    for name, content in (
        ("missing.yaml", None),
        ("binary.yaml", b"\xff\xfe"),
        ("large.yaml", b"#" * (CONFIG_BYTES_MAX + 1)),
    ):
        path = tmp_path / name
        if content is not None:
            path.write_bytes(content)
        with pytest.raises(FileFaultsError) as caught:
            load_config(path, {})
        assert str(caught.value).startswith(f"{path}: ")


def test_config__found_in_the_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a name, sidecar.yaml is read if it is there, and there are only defaults if not."""
    monkeypatch.chdir(tmp_path)
    assert load_config(None, {}).settings == Settings()
    (tmp_path / "sidecar.yaml").write_text("transport: grpcio\nregistry: r.yaml\n")
    config = load_config(None, {})
    assert (config.settings.transport, config.registry_path) == ("grpcio", Path("r.yaml"))


def test_config__the_example_is_right(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The shipped example passes its own check, without a warning, but for its folder on this machine."""
    monkeypatch.setenv("SIDECAR_LISTEN__GRPC", f"unix:{tmp_path}/grpc.sock")
    checked = check(ROOT / "deploy" / "example" / "sidecar.yaml")
    assert len(checked.loaded.registry.snapshot.integrations) == 3
    assert checked.warnings == ()


def test_config_tree__a_value_replaces_what_was_below_it() -> None:
    """The origin of a replaced value is dropped, so no mistake is reported at a line without effect."""
    tree = ConfigTree("FILE", {"a": {"b": 1}}, {("a",): ("FILE", 1), ("a", "b"): ("FILE", 2)})
    tree.put(("a",), {"b": 2}, ("VARIABLE", None))
    assert str(tree.fault(("a", "b"), "is odd")) == "VARIABLE: a.b: is odd"
    tree.put(("a", "c", "d"), 3, ("OTHER", None))
    assert tree.values == {"a": {"b": 2, "c": {"d": 3}}}
    assert json.dumps(tree.values) == '{"a": {"b": 2, "c": {"d": 3}}}'
