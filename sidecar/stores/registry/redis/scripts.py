"""The registry's Lua scripts, loaded from the .lua files in this package."""

from __future__ import annotations

from sidecar.stores.redis.scripts import load_script

CHANGE = load_script("change.lua", __package__)
CLAIM = load_script("claim.lua", __package__)
BAR = load_script("bar.lua", __package__)
PROMISE = load_script("promise.lua", __package__)
ADMINISTER = load_script("administer.lua", __package__)
FENCE = load_script("fence.lua", __package__)
USE = load_script("use.lua", __package__)
REFUSE = load_script("refuse.lua", __package__)
TOKEN_USE = load_script("token_use.lua", __package__)
ANNOUNCE = load_script("announce.lua", __package__)

SCRIPTS = (CHANGE, CLAIM, BAR, PROMISE, ADMINISTER, FENCE, USE, REFUSE, TOKEN_USE, ANNOUNCE)
"""The scripts that the registry needs on a server."""
