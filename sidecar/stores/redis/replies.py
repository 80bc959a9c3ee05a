"""What an error reply means for the takes it answers, and what the client must do about it."""

from __future__ import annotations

from enum import Enum, auto

import hiredis


class ErrorReply(hiredis.ReplyError):
    """An error that the server replied; `args[0]` is its text, whose first word is the code."""

    @property
    def code(self) -> str:
        """The code, such as 'NOSCRIPT'."""
        return code_of(self)


class Remedy(Enum):
    """What to do after an error reply. The takes it answers have failed in any case, but for LOAD_SCRIPT."""

    LOAD_SCRIPT = auto()
    """The server does not know the script: load it and send the call once more, within its deadline."""
    FIND_NODES = auto()
    """The slot or the primary is elsewhere, or nowhere: ask for the topology again."""
    FIND_PRIMARY = auto()
    """This server is no primary: drop the connection and find it."""
    WAIT = auto()
    """The server cannot for now: it counts as a failure of the node."""
    TELL = auto()
    """Something a person must mend: say so in the log."""


_REMEDIES = {
    "NOSCRIPT": Remedy.LOAD_SCRIPT,
    "MOVED": Remedy.FIND_NODES,
    "ASK": Remedy.FIND_NODES,  # the slot is on its way; the new owner answers when it has arrived
    "TRYAGAIN": Remedy.FIND_NODES,
    "CLUSTERDOWN": Remedy.FIND_NODES,
    "CROSSSLOT": Remedy.TELL,
    "READONLY": Remedy.FIND_PRIMARY,
    "MASTERDOWN": Remedy.FIND_PRIMARY,
    "UNBLOCKED": Remedy.FIND_PRIMARY,
    "LOADING": Remedy.WAIT,
    "BUSY": Remedy.WAIT,
    "NOREPLICAS": Remedy.FIND_NODES,  # a deposed primary, or one whose replicas are away
    "MISCONF": Remedy.TELL,
    "OOM": Remedy.TELL,
    "NOAUTH": Remedy.TELL,
    "NOPERM": Remedy.TELL,
    "WRONGPASS": Remedy.TELL,
}

_ADVICE = {
    "CROSSSLOT": "this is a node of a Redis Cluster: use a redis+cluster:// URL",
    "MOVED": "this is a node of a Redis Cluster: use a redis+cluster:// URL",
    "CLUSTERDOWN": "no node serves the slot, or the node is cut off from the others: see CLUSTER INFO",
    "ASK": "the slot is being moved: finish that with 'redis-cli --cluster fix'",
    "TRYAGAIN": "the slot is being moved, its keys are on two nodes: finish with 'redis-cli --cluster fix'",
    "NOREPLICAS": "the primary has fewer replicas than its min-replicas-to-write: see why they are away",
    "MISCONF": "the server cannot persist and refuses writes: see its log",
    "OOM": "the server is at its maxmemory: raise maxmemory, and keep maxmemory-policy noeviction",
    "LOADING": "the server is still reading its data from disk: it is used as soon as that is done",
    "DENIED": "protected-mode of the server admits only its own machine: set a password, or bind an address",
    "NOAUTH": "the server wants a password: give the URL password_env or password_file",
    "NOPERM": "the ACL user lacks a permission: docs/operate/registry-redis.md lists what it needs",
    "WRONGPASS": "the user name or the password is wrong: correct what the URL names",
    "READONLY": "the server is a replica: the URL must lead to the primary",
}
_ADVICE_OF_TEXTS = {
    "The user executing the script can't": _ADVICE["NOPERM"],
    "AUTH <password> called without any password": "the server has no password: leave it out of the URL",
    "DB index is out of range": "the server has fewer databases: use a smaller number, 0 is always there",
    "SELECT is not allowed in cluster mode": "this is a node of a Redis Cluster: use a redis+cluster:// URL",
}
"""For errors whose code says nothing."""


def code_of(error: Exception) -> str:
    """The first word of an error reply; a script's error carries the code of what failed in it."""
    words = str(error).split(maxsplit=1)
    return words[0].rstrip(":") if words else ""


def remedy_of(error: Exception) -> Remedy:
    """What to do; an error we do not know needs a person."""
    return _REMEDIES.get(code_of(error), Remedy.TELL)


def advice_of(error: Exception) -> str:
    """The error and what to do about it, for the log."""
    text = str(error)
    advice = _ADVICE.get(code_of(error)) or next(
        (advice for part, advice in _ADVICE_OF_TEXTS.items() if part in text), ""
    )
    return f"{text}; {advice}" if advice else text
