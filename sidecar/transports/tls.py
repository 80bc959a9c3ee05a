"""
TLS contexts from PEM files, loaded again when a file changes.

A connection keeps the context it was accepted with; only new ones see the change. So a rotated
certificate or a withdrawn client CA takes effect without a restart, and a bad file changes nothing.
"""

from __future__ import annotations

import logging
import ssl
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import TypeVar

from sidecar.observe.file_reading import RETRY_INTERVAL_S, ReadEpisode, read_regular_file
from sidecar.observe.logs import log_event
from sidecar.observe.metrics import Metrics
from sidecar.transports.server import ListenError, TlsFiles

Signature = tuple[tuple[int, int, int] | None, ...]

POLL_INTERVAL_S = RETRY_INTERVAL_S
"""How often a server looks for changed files, and tries again those that cannot be read."""

PEM_BYTES_MAX = 1 << 20
"""A bundle of all public CAs takes 200 KiB."""

UNREAD: Signature = ()
"""The signature of files that were not read: no look finds them unchanged."""

TLS_1_2_CIPHERS = "ECDHE+AESGCM:ECDHE+CHACHA20"
"""Everything else that TLS 1.2 has is prohibited or not ephemeral (RFC 9113 9.2.2)."""

_log = logging.getLogger("sidecar.transports")

Loaded = TypeVar("Loaded")


class UnreadableTlsError(ListenError):
    """A TLS file cannot be read now, which may pass."""


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


def load_again(
    files: TlsFiles, metrics: Metrics, episode: ReadEpisode, load: Callable[[], Loaded]
) -> Loaded | None:
    """
    What *load* makes of changed *files*; None = they cannot be used. Either is counted and logged.

    While they cannot be read, `episode` is open and the next look must try again.
    """
    try:
        loaded = load()
    except UnreadableTlsError as error:
        if not episode.is_open:
            metrics.add("sidecar_tls_reloads_total", "failed")
        episode.begin(str(error))
        return None
    except ListenError as error:
        episode.end()
        metrics.add("sidecar_tls_reloads_total", "failed")
        _log.error("TLS reload failed, the former certificate stays in use: %s", error)
        return None
    episode.end()
    metrics.add("sidecar_tls_reloads_total", "ok")
    _log.info("TLS files loaded again: %s", files.certificate)
    warn_of_validity(files)
    return loaded


def certificate_problem(content: bytes, now: datetime) -> str:
    """
    Why clients refuse the first certificate in *content* (PEM) at the time *now*; '' = they do not.

    Servers load a certificate whatever its dates are.
    """
    from cryptography import x509

    certificate = x509.load_pem_x509_certificates(content)[0]
    begin, end = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    if now > end:
        return f"expired at {end:%Y-%m-%dT%H:%M:%SZ}, so clients that verify it refuse to connect: renew it"
    if now < begin:
        return (
            f"is valid from {begin:%Y-%m-%dT%H:%M:%SZ} on, so clients that verify it refuse to connect now:"
            " look at the clock of this machine, or use another certificate"
        )
    return ""


def warn_of_validity(files: TlsFiles) -> None:
    """Log a warning when clients refuse the certificate because of its dates."""
    try:
        problem = certificate_problem(_read(files.certificate), datetime.now(UTC))
    except (UnreadableTlsError, ValueError):
        return  # whoever loads the file says so
    if problem:
        log_event(_log, logging.WARNING, "TLS certificate", file=str(files.certificate), problem=problem)


def _read(path: Path) -> bytes:
    try:
        return read_regular_file(path, PEM_BYTES_MAX)
    except OSError as error:
        raise UnreadableTlsError(
            f"TLS file {path}: {error.strerror}; check the path and that this user may read it"
        ) from error


def server_context(files: TlsFiles) -> ssl.SSLContext:
    """
    A context for gRPC over TLS: at least TLS 1.2, ALPN exactly h2 (RFC 9113 3.2, 9.2).

    Raises:
        UnreadableTlsError: a file cannot be read now.
        ListenError: a file cannot be used; names it and says what to do.
    """
    for path in _paths(files):
        if len(_read(path)) > PEM_BYTES_MAX:
            raise ListenError(f"TLS file {path} is larger than {PEM_BYTES_MAX >> 20} MiB: name a PEM file")
    try:
        return _server_context(files)
    except ssl.SSLError as error:
        raise ListenError(f"TLS files {files.certificate} and {files.key}: {error}; look at both") from error
    except OSError as error:  # what could be read a moment ago cannot now
        raise UnreadableTlsError(
            f"TLS file {error.filename or files.certificate}: {error.strerror}; check the path and that this"
            " user may read it"
        ) from error


def _server_context(files: TlsFiles) -> ssl.SSLContext:
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
        self._episode = ReadEpisode(metrics, "tls", str(files.certificate))
        self._signature = signature(files)
        self.current = server_context(files)
        warn_of_validity(files)

    def poll(self) -> None:
        """Load the files again when one of them has changed since the last look."""
        if signature(self._files) != self._signature:
            self.reload()

    def reload(self) -> bool:
        """Load the files again; False = they cannot be used, the former context stays."""
        # Taken before reading: a change during the reading is seen at the next look.
        self._signature = signature(self._files)
        loaded = load_again(self._files, self._metrics, self._episode, lambda: server_context(self._files))
        if self._episode.is_open:
            self._signature = UNREAD
        self.current = loaded or self.current
        return loaded is not None
