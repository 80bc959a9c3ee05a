"""
Keeps processor cores from sleeping while latency is measured.

A virtual machine's core that has nothing to do is given back to the host, and to wake it takes many times
as long as a decision; so does any measurement of latency that does not say which of the two it measures.
Source: PM QoS, /dev/cpu_dma_latency (Linux, Documentation/power/pm_qos_interface.rst); cyclictest holds it,
too.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager

WAKE_UP_LATENCY = "/dev/cpu_dma_latency"


@contextmanager
def awake() -> Iterator[bool]:
    """Ask that no core sleeps deeper than a poll while the block runs; False = the system does not let us."""
    try:
        asked = os.open(WAKE_UP_LATENCY, os.O_WRONLY)
    except OSError:
        yield False
        return
    try:
        os.write(asked, struct.pack("i", 0))
        yield True
    finally:
        os.close(asked)
