"""Domain code is values and rules: no input or output, no clock, no concurrency."""

from __future__ import annotations

import ast

import pytest

from tests.house.source import Source, called_name, python_sources, report

MODULES = frozenset(
    {
        "asyncio", "concurrent", "http", "io", "logging", "mmap", "multiprocessing", "os", "pathlib",
        "select", "selectors", "signal", "sqlite3", "ssl", "subprocess", "tempfile", "threading",
        "urllib.request",
    }
)  # fmt: skip
CALLS = frozenset(
    {
        "open", "print", "input",
        "time.time", "time.time_ns", "time.monotonic", "time.monotonic_ns", "time.perf_counter",
        "time.perf_counter_ns", "time.sleep",
        "datetime.now", "datetime.utcnow", "datetime.today", "date.today",
        "datetime.datetime.now", "datetime.datetime.utcnow", "datetime.datetime.today", "datetime.date.today",
        "socket.socket", "socket.create_connection", "socket.getaddrinfo", "socket.gethostbyname",
        "random.random", "random.choice", "random.randint", "random.shuffle",
    }
)  # fmt: skip


def faults_of(source: Source) -> list[str]:
    """One line for each thing in *source* that reaches outside its arguments."""
    faults = []
    for node in ast.walk(source.tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and not node.level:
            names = [node.module or "", *(f"{node.module}.{alias.name}" for alias in node.names)]
        elif isinstance(node, ast.Call) and called_name(node) in CALLS:
            faults.append(f"{source.path}:{node.lineno}: domain must not call {called_name(node)}")
            continue
        else:
            continue
        banned = [name for name in names if name in MODULES | CALLS or name.split(".")[0] in MODULES]
        faults += [f"{source.path}:{node.lineno}: domain must not import {name}" for name in banned]
    return faults


def test_domain__reaches_nothing_but_its_arguments() -> None:
    """Time, files, sockets and loops come in from outside, so every rule can be tested as it is."""
    report(
        [
            fault
            for source in python_sources()
            if source.path.startswith("sidecar/domain/")
            for fault in faults_of(source)
        ]
    )


@pytest.mark.parametrize(
    "text",
    [
        "import asyncio",
        "import logging.handlers",
        "from time import time",
        "import time\ntime.time_ns()",
        "print('x')",
        "open('x')",
        "from datetime import datetime\ndatetime.now()",
        "import socket\nsocket.socket()",
    ],
)
def test_domain__a_reach_outside_is_found(text: str) -> None:
    """The check itself finds imports, calls and names imported from modules."""
    assert faults_of(Source("sidecar/domain/a.py", text))


@pytest.mark.parametrize("text", ["import socket\nsocket.inet_ntop(2, b'')", "from datetime import datetime"])
def test_domain__pure_functions_pass(text: str) -> None:
    """The check itself admits conversions of these modules."""
    assert faults_of(Source("sidecar/domain/a.py", text)) == []
