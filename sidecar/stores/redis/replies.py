"""Error replies of Redis: what the client does about each, and advice for the log."""

from __future__ import annotations

from enum import Enum, auto
from typing import Final

import hiredis


class ErrorReply(hiredis.ReplyError):
    """An error reply; `args[0]` is its text, whose first word is the code."""

    @property
    def code(self) -> str:
        """The code, such as 'NOSCRIPT'."""
        return code_of(self)


class Remedy(Enum):
    """What to do after an error reply. Except for LOAD_SCRIPT and redirects its takes fail."""

    LOAD_SCRIPT = auto()
    """The server lacks the script: load it and send the call once more, within its deadline."""
    FIND_NODES = auto()
    """Another node or no node serves the slot: read the topology again."""
    FIND_PRIMARY = auto()
    """This server is not a primary: close the connection and find the primary."""
    WAIT = auto()
    """The server is temporarily unable to answer: count a failure of the node."""
    LOG = auto()
    """A person must fix this: log it."""


_REMEDIES: Final = {
    "NOSCRIPT": Remedy.LOAD_SCRIPT,
    "MOVED": Remedy.FIND_NODES,
    "ASK": Remedy.FIND_NODES,  # the slot is migrating
    "TRYAGAIN": Remedy.FIND_NODES,
    "CLUSTERDOWN": Remedy.FIND_NODES,
    "CROSSSLOT": Remedy.LOG,
    "READONLY": Remedy.FIND_PRIMARY,
    "MASTERDOWN": Remedy.FIND_PRIMARY,
    "UNBLOCKED": Remedy.FIND_PRIMARY,
    "LOADING": Remedy.WAIT,
    "BUSY": Remedy.WAIT,
    "NOREPLICAS": Remedy.FIND_NODES,  # a former primary, or one whose replicas are down
    "MISCONF": Remedy.LOG,
    "OOM": Remedy.LOG,
    "NOAUTH": Remedy.LOG,
    "NOPERM": Remedy.LOG,
    "WRONGPASS": Remedy.LOG,
}

_ADVICE: Final = {
    "CROSSSLOT": "this is a node of a Redis Cluster: use a redis+cluster:// URL",
    "MOVED": "this is a node of a Redis Cluster: use a redis+cluster:// URL",
    "CLUSTERDOWN": "no node serves the slot, or the node is partitioned from the others: see CLUSTER INFO",
    "ASK": "the slot is migrating: finish the migration with 'redis-cli --cluster fix'",
    "TRYAGAIN": "the slot is migrating, its keys are on two nodes: finish with 'redis-cli --cluster fix'",
    "NOREPLICAS": "the primary has fewer replicas than its min-replicas-to-write: find out why they are down",
    "MISCONF": "the server cannot persist and refuses writes: see its log",
    "OOM": "the server is at its maxmemory: raise maxmemory, and keep maxmemory-policy noeviction",
    "LOADING": "the server is loading its data from disk: the sidecar uses it as soon as that is done",
    "DENIED": "the server's protected-mode accepts only local clients: set a password, or bind an address",
    "NOAUTH": "the server requires a password: add password_env or password_file to the URL",
    "NOPERM": "the ACL user lacks a permission: docs/operate/registry-redis.md lists what it needs",
    "WRONGPASS": "the user name or the password is wrong: fix the login that the URL names",
    "READONLY": "the server is a replica: the URL must name the primary",
}
_ADVICE_OF_TEXTS: Final = {
    "The user executing the script can't": _ADVICE["NOPERM"],
    "AUTH <password> called without any password": "the server has no password: remove it from the URL",
    "DB index is out of range": "the server has fewer databases: use a smaller number; 0 always exists",
    "SELECT is not allowed in cluster mode": "this is a node of a Redis Cluster: use a redis+cluster:// URL",
}
"""Advice by a part of the text, for errors without a specific code."""


def code_of(error: Exception) -> str:
    """The first word of an error reply; a script's error has the code of the command that failed in it."""
    words = str(error).split(maxsplit=1)
    return words[0].rstrip(":") if words else ""


def remedy_of(error: Exception) -> Remedy:
    """The remedy of *error*; unknown errors are logged."""
    return _REMEDIES.get(code_of(error), Remedy.LOG)


def advice_of(error: Exception) -> str:
    """The error text and what to do about it."""
    text = str(error)
    advice = _ADVICE.get(code_of(error)) or next(
        (advice for part, advice in _ADVICE_OF_TEXTS.items() if part in text), ""
    )
    return f"{text}; {advice}" if advice else text
