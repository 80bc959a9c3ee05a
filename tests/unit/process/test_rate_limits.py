"""`rate_limits`: served by a real process, reloaded, checked, and what is said of mistakes."""

from __future__ import annotations

import json
import secrets
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import pytest
from envoy.service.ratelimit.v3.rls_pb2 import RateLimitRequest, RateLimitResponse

from sidecar.domain.rate_limits.counters import Algorithm
from sidecar.domain.rate_limits.decisions import LimitStyle
from sidecar.process.checking import check
from sidecar.process.rate_limits_source import RateLimitsSource, limit_style
from sidecar.process.settings import RateLimitSettings
from sidecar.services.rls import SHOULD_RATE_LIMIT
from sidecar.sources.file_faults import FileFaultsError
from tests.golden_rate_limits import request_of, text_of
from tests.redis_servers import shared
from tests.waiting import PATIENCE_S, eventually

from .running import Configured, Running, admin_get, eventually_metric, metric

REJECTED = "rate-limit configuration file rejected; the previous rate-limit configuration stays in force"
RELOADS = 'sidecar_rate_limit_reloads_total{{result="{}"}}'


def limits_text(requests: int, domain: str = "shop") -> str:
    """A file with one rule."""
    rule = f"rate_limit: {{unit: year, requests_per_unit: {requests}}}"
    return f"domain: {domain}\ndescriptors:\n  - key: user\n    {rule}\n"


def put(path: Path, text: str) -> None:
    """Replace a file whole."""
    draft = path.parent.parent / "draft"
    draft.write_text(text)
    draft.replace(path)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with one file."""
    folder = tmp_path / "limits"
    folder.mkdir()
    (folder / "shop.yaml").write_text(limits_text(5))
    return folder


class AskedLimits:
    """A client of a running sidecar."""

    def __init__(self, running: Running | str) -> None:
        """Connect to a process, or to an address."""
        target = running if isinstance(running, str) else running.event("serving")["grpc"][0]
        self.channel = grpc.insecure_channel(target)
        self._call: Callable[..., Any] = self.channel.unary_unary(
            SHOULD_RATE_LIMIT, RateLimitRequest.SerializeToString, RateLimitResponse.FromString
        )

    def __call__(self, text: str, domain: str = "shop") -> str:
        """The answer to a call, as text."""
        return text_of(self._call(request_of(text, domain), timeout=PATIENCE_S))

    def __enter__(self) -> AskedLimits:
        """Nothing more to do."""
        return self

    def __exit__(self, *error: object) -> None:
        """Disconnect."""
        self.channel.close()


@pytest.mark.parametrize("transport", ["fast", "grpcio"])
def test_serve__limits_rates(tmp_path: Path, folder: Path, transport: str) -> None:
    """A bare path is enough; calls count, metrics name the rule, health knows the service."""
    configured = Configured(tmp_path, transport=transport, rate_limits="limits")
    with configured.serve() as running, AskedLimits(running) as asked:
        assert asked("user=a @5") == "OK [OK 5/year r0]"
        assert asked("user=a") == "OVER [OVER 5/year r0]"
        assert asked("other=a", "nowhere") == "OK [-]"
        with pytest.raises(grpc.RpcError) as raised:
            asked("user=a", "")
        assert raised.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        health = asked.channel.unary_unary("/grpc.health.v1.Health/Check", None, None)
        assert health(b"\x0a\x09ratelimit", timeout=PATIENCE_S) == b"\x08\x01"
        admin = running.admin()
        hits = 'sidecar_rate_limit_hits_total{{domain="{}",result="{}",rule="{}"}}'
        assert metric(admin, hits.format("shop", "within_limit", "user")) == 5
        assert metric(admin, hits.format("shop", "over_limit", "user")) == 1
        assert metric(admin, hits.format("(unknown)", "within_limit", "(none)")) == 1
        assert metric(admin, 'sidecar_rate_limit_calls_total{result="invalid"}') == 1
        assert "nowhere" not in admin_get(admin, "/metrics")[1]


def test_serve__workers_share_counters(tmp_path: Path, folder: Path) -> None:
    """Workers count in one Redis and their metrics are one; a rolling restart reads the files again."""
    store = f"{shared().standalone.url}?prefix=limits-{secrets.token_hex(4)}:"
    configured = Configured(tmp_path, rate_limits="limits", store=store, workers=2)
    with configured.serve() as running:
        target = running.event("supervising")["grpc"][0]
        admin = running.admin()
        within = 'sidecar_rate_limit_hits_total{domain="shop",result="within_limit",rule="user"}'
        for number in range(4):  # each connection goes to some worker
            with AskedLimits(target) as asked:
                assert asked("user=a") == f"OK [OK 5/year r{4 - number}]"
        eventually_metric(admin, within, 4)
        put(folder / "shop.yaml", limits_text(9))
        running.signal(signal.SIGHUP)
        eventually_metric(admin, 'sidecar_rolling_restarts_total{result="ok"}', 1)
        with AskedLimits(target) as asked:
            assert asked("user=a") == "OK [OK 9/year r4]"
        eventually_metric(admin, within, 5)


def test_serve__reloads_rate_limits(tmp_path: Path, folder: Path) -> None:
    """Good files come into force; broken ones leave the former rules, and log, metric and /readyz say so."""
    configured = Configured(tmp_path, rate_limits={"path": "limits"})
    with configured.serve() as running, AskedLimits(running) as asked:
        admin = running.admin()
        assert asked("user=a") == "OK [OK 5/year r4]"
        put(folder / "shop.yaml", limits_text(9))
        eventually_metric(admin, RELOADS.format("ok"), 1)
        assert asked("user=a") == "OK [OK 9/year r7]"

        put(folder / "shop.yaml", limits_text(9) + "    unit: day\n")
        eventually_metric(admin, RELOADS.format("failed"), 1)
        refused = running.event(REJECTED)
        place = f"{folder / 'shop.yaml'}:5: descriptors[0]: 'unit' has no meaning here"
        assert refused["faults"][0].startswith(place)
        status, body = admin_get(admin, "/readyz")
        component = json.loads(body)["components"]["rate_limits"]
        assert (status, component["is_ready"]) == (200, True)
        assert place in component["state"]
        assert asked("user=a") == "OK [OK 9/year r6]"

        (folder / "shop.yaml").unlink()
        (folder / "sub").mkdir()
        (folder / "sub" / "new").write_text(limits_text(3, "new"))
        eventually_metric(admin, RELOADS.format("ok"), 2)
        assert asked("user=a", "new") == "OK [OK 3/year r2]"
        assert asked("user=a") == "OK [-]"
        state = json.loads(admin_get(admin, "/readyz")[1])["components"]["rate_limits"]["state"]
        assert state == "loaded"


def test_serve__a_folder_that_cannot_be_read(tmp_path: Path, folder: Path) -> None:
    """The rules stay in force while the folder is away, and come back with it."""
    configured = Configured(tmp_path, rate_limits="limits")
    with configured.serve() as running, AskedLimits(running) as asked:
        admin = running.admin()
        assert asked("user=a") == "OK [OK 5/year r4]"
        folder.rename(tmp_path / "away")
        eventually_metric(admin, 'sidecar_files_unreadable{file="rate_limits"}', 1)
        assert asked("user=a") == "OK [OK 5/year r3]"
        (tmp_path / "away").rename(folder)
        eventually_metric(admin, 'sidecar_files_unreadable{file="rate_limits"}', 0)
        put(folder / "shop.yaml", limits_text(7))
        eventually(lambda: asked("user=b~h0") == "OK [OK 7/year r7]", what="the new rules are in force")


def test_check_config__reads_rate_limits(tmp_path: Path, folder: Path) -> None:
    """Every mistake of every file is reported, those of the configuration too; what is odd is a warning."""
    (folder / "b.yaml").write_text("domain: b\ndescriptors: [{key: k, rate_limit: {unit: dya}}]\n")
    (folder / "README").write_text("Our limits\n")
    configured = Configured(
        tmp_path, rate_limits={"path": "limits", "domains": {"gone": {"algorithm": "token_bucket"}}}
    )
    with pytest.raises(FileFaultsError) as raised:
        check(configured.file)
    assert [(Path(fault.file).name, fault.line) for fault in raised.value.faults] == [
        ("README", 1),
        ("b.yaml", 2),
    ]
    (folder / "b.yaml").unlink()
    (folder / "README").unlink()
    warnings = check(configured.file).warnings
    assert any("rate_limits.domains.gone" in warning.problem for warning in warnings)


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"algorithm": "token_bucket"}, "rate_limits: path is missing; name the folder"),
        ({"path": "limits", "algoritm": "x"}, "unknown key 'algoritm'; did you mean 'algorithm'?"),
        ({"path": "limits", "domains": {"shop": {"algoritm": "x"}}}, "unknown key 'algoritm'; did you mean"),
        ({"path": "limits", "algorithm": "leaky"}, "must be 'fixed_window' or 'token_bucket', not 'leaky'"),
        ({"path": "limits", "response_headers": {"limit": "a b"}}, "must be the name of a header"),
        ({"path": "absent"}, "cannot be read (No such file or directory)"),
    ],
)  # fmt: skip
def test_check_config__refuses_settings(
    tmp_path: Path, folder: Path, settings: dict[str, Any], problem: str
) -> None:
    """An invalid setting is reported with what is allowed."""
    with pytest.raises(FileFaultsError) as raised:
        check(Configured(tmp_path, rate_limits=settings).file)
    assert problem in str(raised.value)


def test_source__reads_as_the_settings_say(tmp_path: Path, folder: Path) -> None:
    """Domains have their algorithm; dot files are skipped; equal content is not loaded again."""
    (folder / ".hidden").write_text("not: yaml: at all")
    (folder / "..data").mkdir()
    (folder / "..data" / "shop.yaml").write_text(limits_text(1))
    (folder / "other.yml").write_text(limits_text(1, "other"))
    domains = {"other": {"algorithm": "token_bucket"}}
    source = RateLimitsSource(folder, RateLimitSettings.model_validate({"path": "x", "domains": domains}))
    loaded = source.load()
    assert loaded is not None
    algorithms = {name: domain.algorithm for name, domain in loaded.limits.domains.items()}
    assert algorithms == {"shop": Algorithm.FIXED_WINDOW, "other": Algorithm.TOKEN_BUCKET}
    assert source.load() is None
    assert source.poll() is None


def test_source__a_config_map_that_is_swapped(tmp_path: Path) -> None:
    """Kubernetes swaps a symlink to a folder: the files behind their links are read again."""
    for name, requests in (("..1", 1), ("..2", 2)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "shop.yaml").write_text(limits_text(requests))
    (tmp_path / "..data").symlink_to("..1")
    (tmp_path / "shop.yaml").symlink_to(Path("..data") / "shop.yaml")
    source = RateLimitsSource(tmp_path, RateLimitSettings(path="x"))
    assert source.load() is not None
    (tmp_path / "..new").symlink_to("..2")
    (tmp_path / "..new").replace(tmp_path / "..data")
    assert source.poll() is None  # seen, but perhaps not all of it
    loaded = source.poll()
    assert loaded is not None
    [rule] = loaded.limits.domains["shop"].rules()
    assert rule.limit is not None
    assert rule.limit.requests == 2


def test_source__bounds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Too many files, or one that is too large, are reported instead of read."""
    monkeypatch.setattr("sidecar.process.rate_limits_source.FILES_MAX", 2)
    monkeypatch.setattr("sidecar.process.rate_limits_source.FILE_BYTES_MAX", 1 << 20)
    source = RateLimitsSource(tmp_path, RateLimitSettings(path="x"))
    (tmp_path / "large").write_text("#" * ((1 << 20) + 1))
    with pytest.raises(FileFaultsError, match="is larger than 1 MiB"):
        source.load()
    for number in range(3):
        (tmp_path / str(number)).write_text(limits_text(1, str(number)))
    with pytest.raises(FileFaultsError, match="holds more than 2 files"):
        source.load()


def test_style__is_what_the_settings_say() -> None:
    """Headers are off unless they are turned on; their names can be changed."""
    assert limit_style(RateLimitSettings(path="x")) == LimitStyle()
    headers = {"enabled": True, "reset": "X-Reset"}
    settings = RateLimitSettings.model_validate(
        {
            "path": "x",
            "response_headers": headers,
            "all_or_none": True,
            "shadow_mode": True,
            "dynamic_metadata": True,
        }
    )
    names = ("RateLimit-Limit", "RateLimit-Remaining", "X-Reset")
    assert limit_style(settings) == LimitStyle(True, True, names, True)
    short = RateLimitSettings.model_validate({"path": "x", "response_headers": True})
    assert short.response_headers.enabled
