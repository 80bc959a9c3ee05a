"""How many files the process may open."""

from __future__ import annotations

import resource

FILES_WANTED = 65_536
"""Connections of every listener and the store's, with room; more would only slow programs that close all."""


def raise_open_files_limit() -> int:
    """
    Raise the soft limit of open files as far as the hard one allows; child processes inherit it.

    Many systems start services with a soft limit of 1,024, which is for programs that use select(2).

    Returns:
        The soft limit that is in force.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = FILES_WANTED if hard == resource.RLIM_INFINITY else min(hard, FILES_WANTED)
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return soft
    resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    return wanted
