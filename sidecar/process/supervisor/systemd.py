"""
Tells systemd that the sidecar serves: `Type=notify` in a unit file.

Source: sd_notify(3).
"""

from __future__ import annotations

import logging
import os
import socket

_log = logging.getLogger("sidecar.process")


def notify_ready() -> None:
    """Say READY=1 to whoever waits for it; nothing happens when nobody does."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address:
        return
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
            sender.setblocking(False)
            sender.connect(address.replace("@", "\0", 1) if address[0] == "@" else address)
            sender.send(b"READY=1")
    except OSError as error:
        _log.warning("systemd was not told that the sidecar serves: %s", error.strerror)
