"""
TLS contexts from PEM files, loaded again when a file changes.

A connection keeps the context it was accepted with; only new ones see the change. So a rotated
certificate or a withdrawn client CA takes effect without a restart, and a bad file changes nothing.
"""

from __future__ import annotations

import logging
import ssl
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from sidecar.observe.metrics import Metrics
from sidecar.transports.server import ListenError, TlsFiles

POLL_INTERVAL_S = 5.0
"""How often a server looks for changed files; `reload` does it at once."""

TLS_1_2_CIPHERS = "ECDHE+AESGCM:ECDHE+CHACHA20"
"""Everything else that TLS 1.2 has is prohibited or not ephemeral (RFC 9113 9.2.2)."""

_log = logging.getLogger("sidecar.transports")

Signature = tuple[tuple[int, int, int] | None, ...]
Loaded = TypeVar("Loaded")


def signature(files: TlsFiles) -> Signature:
    """What changes when one of *files* is written or replaced; None stands for one that is missing."""
    return tuple(map(_stat_signature, _paths(files)))


def _paths(files: TlsFiles) -> tuple[Path, ...]:
    return (files.certificate, files.key, *((files.client_ca,) if files.client_ca else ()))


def _stat_signature(path: Path) -> tuple[int, int, int] | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_mtime_ns, status.st_ino, status.st_size


def load_again(files: TlsFiles, metrics: Metrics, load: Callable[[], Loaded]) -> Loaded | None:
    """What *load* makes of changed *files*; None = they cannot be used. Either is counted and logged."""
    try:
        loaded = load()
    except ListenError as error:
        metrics.add("sidecar_tls_reloads_total", "failed")
        _log.error("TLS reload failed, the former certificate stays in use: %s", error)
        return None
    metrics.add("sidecar_tls_reloads_total", "ok")
    _log.info("TLS files loaded again: %s", files.certificate)
    return loaded


def server_context(files: TlsFiles) -> ssl.SSLContext:
    """
    A context for gRPC over TLS: at least TLS 1.2, ALPN exactly h2 (RFC 9113 3.2, 9.2).

    Raises:
        ListenError: a file cannot be used; names it and says what to do.
    """
    for path in _paths(files):
        try:
            with path.open("rb"):
                pass
        except OSError as error:
            raise ListenError(
                f"TLS file {path}: {error.strerror}; check the path and that this user may read it"
            ) from error
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_ciphers(TLS_1_2_CIPHERS)
    context.set_alpn_protocols(["h2"])
    context.options |= ssl.OP_NO_RENEGOTIATION  # RFC 9113 9.2.1
    _load_certificate(context, files)
    if files.client_ca is not None:
        _load_client_ca(context, files.client_ca)
    return context


def _load_certificate(context: ssl.SSLContext, files: TlsFiles) -> None:
    try:
        # The password function keeps OpenSSL from asking on the terminal for an encrypted key's.
        context.load_cert_chain(files.certificate, files.key, password=lambda: "")
    except ssl.SSLError as error:
        if error.reason == "KEY_VALUES_MISMATCH":
            problem = "the key does not belong to the certificate; write both, then reload"
        else:
            problem = (
                f"not a PEM certificate chain and its unencrypted key ({error.reason or error}); "
                "convert them to PEM"
            )
        raise ListenError(f"TLS files {files.certificate} and {files.key}: {problem}") from error


def _load_client_ca(context: ssl.SSLContext, client_ca: Path) -> None:
    try:
        context.load_verify_locations(client_ca)
    except ssl.SSLError as error:
        raise ListenError(f"TLS file {client_ca}: it holds no PEM certificate of a CA") from error
    context.verify_mode = ssl.CERT_REQUIRED


class TlsContext:
    """The context for new connections of one endpoint, kept up to date with its files."""

    def __init__(self, files: TlsFiles, metrics: Metrics) -> None:
        """
        Load *files*.

        Raises:
            ListenError: a file cannot be used.
        """
        self._files = files
        self._metrics = metrics
        self._signature = signature(files)
        self.current = server_context(files)

    def poll(self) -> None:
        """Load the files again when one of them has changed since the last look."""
        if signature(self._files) != self._signature:
            self.reload()

    def reload(self) -> bool:
        """Load the files again; False = they cannot be used, the former context stays."""
        # Taken before reading: a change during the reading is seen at the next look.
        self._signature = signature(self._files)
        loaded = load_again(self._files, self._metrics, lambda: server_context(self._files))
        self.current = loaded or self.current
        return loaded is not None
