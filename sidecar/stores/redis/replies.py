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
    """The slot is served elsewhere, or nowhere: ask for the topology again."""
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
    "NOREPLICAS": Remedy.WAIT,
    "MISCONF": Remedy.TELL,
    "OOM": Remedy.TELL,
    "NOAUTH": Remedy.TELL,
    "NOPERM": Remedy.TELL,
    "WRONGPASS": Remedy.TELL,
}

_ADVICE = {
    "CROSSSLOT": "this is a Redis Cluster: use a redis+cluster:// URL",
    "MISCONF": "the server cannot persist and refuses writes: see its log",
    "OOM": "the server is at its maxmemory: give it more, or set maxmemory-policy volatile-ttl",
    "NOAUTH": "the server wants a password: put it into the URL's environment variable or file",
    "NOPERM": "the ACL user lacks a permission: docs/registry-redis.md lists what it needs",
    "WRONGPASS": "the user or the password is wrong",
    "READONLY": "the server is a replica: the URL must lead to the primary",
}


def code_of(error: Exception) -> str:
    """The first word of an error reply; a script's error carries the code of what failed in it."""
    words = str(error).split(maxsplit=1)
    return words[0].rstrip(":") if words else ""


def remedy_of(error: Exception) -> Remedy:
    """What to do; an error we do not know needs a person."""
    return _REMEDIES.get(code_of(error), Remedy.TELL)


def advice_of(error: Exception) -> str:
    """The error and what to do about it, for the log."""
    advice = _ADVICE.get(code_of(error))
    return f"{error}; {advice}" if advice else str(error)
