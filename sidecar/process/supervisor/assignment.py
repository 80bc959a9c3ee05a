"""
What a worker is told at its start: its number, the configuration, where to listen, where to count.

The configuration travels as the values that the supervisor has read and checked, not as a path: so a
worker that is started again after a crash runs what its neighbours run, whatever has become of the
file. It is handed over in a memfd, which no other process can read, because it may hold secrets.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from sidecar.process.config import Config
from sidecar.process.config_source import ConfigTree
from sidecar.process.listeners import Served, read_served, texts_of
from sidecar.process.settings import LISTEN_KINDS, Settings


@dataclass(frozen=True, slots=True)
class Assignment:
    """
    The task of worker *index*.

    `listen` is where it listens, by kind, item by item of `listen.<kind>`; `counts_fd` is its block of
    counts, `link_fd` its end of the socket to the supervisor. `is_successor` = another process serves these
    endpoints until this worker is ready, so it listens only then.
    """

    index: int
    config: Config
    listen: Served
    counts_fd: int
    link_fd: int
    is_successor: bool = False

    def write(self) -> int:
        """A memfd that holds it, to be inherited by the worker and closed here after its start."""
        tree = self.config.tree
        content = {
            "index": self.index,
            "listen": texts_of(self.listen),
            "counts_fd": self.counts_fd,
            "link_fd": self.link_fd,
            "directory": str(self.config.directory),
            "takes_over": self.config.takes_over,
            "is_successor": self.is_successor,
            "file": tree.file,
            "values": tree.values,
            "origins": list(tree.origins.items()),
        }
        fd = os.memfd_create("sidecar-assignment", os.MFD_CLOEXEC)
        with os.fdopen(os.dup(fd), "w") as stream:
            json.dump(content, stream)
        return fd


def read_assignment(fd: int) -> Assignment:
    """The assignment in the memfd *fd*, which is closed; the configuration is that of this worker."""
    os.lseek(fd, 0, os.SEEK_SET)
    with os.fdopen(fd) as stream:
        content: dict[str, Any] = json.load(stream)
    origins = {tuple(path): (file, line) for path, (file, line) in content["origins"]}
    tree = ConfigTree(content["file"], _tuples(content["values"]), origins)
    listen = read_served(content["listen"])
    settings = Settings.model_validate(tree.values)
    config = Config(settings, Path(content["directory"]), tree, content["takes_over"])
    return Assignment(
        content["index"],
        own_config(config, listen),
        listen,
        content["counts_fd"],
        content["link_fd"],
        content["is_successor"],
    )


def own_config(config: Config, listen: Served) -> Config:
    """*config* as one worker runs it: listening on *listen* alone."""
    items: dict[str, Any] = dict.fromkeys(LISTEN_KINDS, ())
    for kind, endpoints in listen.items():
        configured = getattr(config.settings.listen, kind)
        items[kind] = tuple(
            item.model_copy(update={"address": endpoint})
            for item, endpoint in zip(configured, endpoints, strict=True)
        )
    own = config.settings.listen.model_copy(update=items)
    return replace(config, settings=config.settings.model_copy(update={"listen": own}))


def _tuples(value: Any) -> Any:
    """JSON's lists as the tuples that they were: settings are strict about it."""
    if isinstance(value, list):
        return tuple(map(_tuples, value))
    if isinstance(value, dict):
        return {key: _tuples(inner) for key, inner in value.items()}
    return value
