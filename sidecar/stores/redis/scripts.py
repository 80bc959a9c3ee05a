"""The Lua scripts, which Redis identifies by their SHA-1."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from importlib import resources

from sidecar.stores.redis.resp import pack


@dataclass(frozen=True, slots=True)
class Script:
    """One script: `sha` is the argument of EVALSHA, `load` the encoded SCRIPT LOAD command."""

    name: str
    source: bytes
    sha: bytes
    load: bytes


def load_script(name: str, package: str = __package__) -> Script:
    """Load the script from file *name* of *package*."""
    source = resources.files(package).joinpath(name).read_bytes()
    # Redis identifies scripts by SHA-1; security does not depend on it.
    sha = hashlib.sha1(source, usedforsecurity=False).hexdigest().encode()
    return Script(name, source, sha, pack("SCRIPT", "LOAD", source))


TAKE = load_script("take.lua")
COUNT = load_script("count.lua")
HEARTBEAT = load_script("heartbeat.lua")
SCRIPTS = (TAKE, COUNT, HEARTBEAT)
"""The scripts that the stores of buckets and counters need on a server."""
