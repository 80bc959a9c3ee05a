"""Our Lua: the .lua files are the only copies, and Redis knows them by their SHA-1."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from importlib import resources

from sidecar.stores.redis.resp import pack


@dataclass(frozen=True, slots=True)
class Script:
    """
    One script.

    `sha` is what EVALSHA takes, `load` the packed SCRIPT LOAD that makes it known to a server.
    """

    name: str
    source: bytes
    sha: bytes
    load: bytes


def load_script(name: str, package: str = __package__) -> Script:
    """The script in file *name* of *package*."""
    source = resources.files(package).joinpath(name).read_bytes()
    # Redis names scripts by SHA-1; nothing here relies on its strength.
    sha = hashlib.sha1(source, usedforsecurity=False).hexdigest().encode()
    return Script(name, source, sha, pack("SCRIPT", "LOAD", source))


TAKE = load_script("take.lua")
HEARTBEAT = load_script("heartbeat.lua")
SCRIPTS = (TAKE, HEARTBEAT)
"""Every script that the store needs on a server."""
