"""
What a worker gets at its start: its number, the configuration, its endpoints and its shared memory.

The supervisor passes the configuration's values, which it has read and checked, and not a path: so a worker
that restarts after a crash has the configuration of the others, even if the file has changed. It may hold
secrets, so it is passed in a memfd, which no other process can read.
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

    `listen` has the endpoints by kind, one for each item of `listen.<kind>`; `counts_fd` is its metrics block
    in shared memory, `link_fd` its end of the socket to the supervisor. `is_successor` = another process
    serves these endpoints until this worker is ready, so the worker listens only then. `log_fd` is the socket
    to the writer of the decision log, -1 = off, and `name` this process in its frames.
    """

    index: int
    config: Config
    listen: Served
    counts_fd: int
    link_fd: int
    is_successor: bool = False
    log_fd: int = -1
    name: str = ""

    def write(self) -> int:
        """Write the assignment to a memfd for the worker to inherit; the caller closes it after the start."""
        tree = self.config.tree
        content = {
            "index": self.index,
            "listen": texts_of(self.listen),
            "counts_fd": self.counts_fd,
            "link_fd": self.link_fd,
            "directory": str(self.config.directory),
            "takes_over": self.config.takes_over,
            "is_successor": self.is_successor,
            "log_fd": self.log_fd,
            "name": self.name,
            "file": tree.file,
            "values": tree.values,
            "origins": list(tree.origins.items()),
        }
        fd = os.memfd_create("sidecar-assignment", os.MFD_CLOEXEC)
        with os.fdopen(os.dup(fd), "w") as stream:
            json.dump(content, stream)
        return fd


def read_assignment(fd: int) -> Assignment:
    """Read the assignment in the memfd *fd* and close it; the configuration has this worker's endpoints."""
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
        content["log_fd"],
        content["name"],
    )


def own_config(config: Config, listen: Served) -> Config:
    """*config* with the endpoints *listen* of one worker."""
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
    """Turn JSON's lists back into tuples, as the strict settings need."""
    if isinstance(value, list):
        return tuple(map(_tuples, value))
    if isinstance(value, dict):
        return {key: _tuples(inner) for key, inner in value.items()}
    return value
