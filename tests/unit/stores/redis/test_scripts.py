"""Our Lua: known to the server by the hash of the file, and held to the rules that keep numbers exact."""

from __future__ import annotations

import re

import pytest

from sidecar.stores.redis.scripts import SCRIPTS, Script
from tests.redis_servers import shared

EACH_SCRIPT = pytest.mark.parametrize("script", SCRIPTS, ids=[script.name for script in SCRIPTS])


def code_of(script: Script) -> str:
    """The script without its comments."""
    return "\n".join(line.partition("--")[0] for line in script.source.decode().splitlines())


@EACH_SCRIPT
def test_scripts__the_server_knows_them_by_the_hash_in_use(script: Script) -> None:
    """The file that is loaded and the hash that is called are one."""
    assert shared().standalone.client.script_load(script.source.decode()) == script.sha.decode()


@EACH_SCRIPT
def test_scripts__numbers_never_become_text_by_themselves(script: Script) -> None:
    """tostring and '..' keep 14 digits, so the only '..' builds a format; every number sent is formatted."""
    code = code_of(script)
    assert "tostring" not in code
    assert len(re.findall(r"\.\.", code.replace("'<' .. string.rep(", ""))) == 0


@EACH_SCRIPT
def test_scripts__expiry_comes_with_the_value(script: Script) -> None:
    """No EXPIRE in seconds, no SET without PX (the layout stays), nothing that walks over keys."""
    calls = re.findall(r"call\('([A-Z]+)'", code_of(script))
    assert calls
    assert not {"EXPIRE", "SCAN", "KEYS", "INCR", "INCRBY", "SETEX"} & set(calls)
    for line in code_of(script).splitlines():
        if "'SET'" in line and "'NX'" not in line:
            assert "'PX'" in line


@EACH_SCRIPT
def test_scripts__the_header_tells_the_contract(script: Script) -> None:
    """Keys, arguments, reply, TTL and cost."""
    header = script.source.decode().split("\n\n")[0:2]
    for word in ("KEYS[", "ARGV[1]", "Reply", "TTL", "Cost"):
        assert word in "\n".join(header)
