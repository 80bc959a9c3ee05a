"""
TLS contexts from PEM files, reloaded when a file changes.

A connection keeps the context with which it was accepted; a change affects new connections. So a rotated
certificate or a removed client CA takes effect without a restart, and a bad file changes nothing.
"""

from __future__ import annotations

import contextlib
import logging
import ssl
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import TypeVar

from sidecar.observe.file_reading import RETRY_INTERVAL_S, ReadEpisode, read_regular_file
from sidecar.observe.logs import log_event
from sidecar.observe.metrics import Metrics
from sidecar.transports.server import Endpoint, ListenError, TlsFiles

Signature = tuple[tuple[int, int, int] | None, ...]

POLL_INTERVAL_S = RETRY_INTERVAL_S
"""How often a server checks files for changes, and retries those that could not be read."""

PEM_BYTES_MAX = 1 << 20
"""Maximum size of a PEM file; a bundle of all public CAs has 200 KiB."""

UNREAD: Signature = ()
"""The signature of files that could not be read; it differs from every other signature."""

TLS_1_2_CIPHERS = "ECDHE+AESGCM:ECDHE+CHACHA20"
"""The other ciphers of TLS 1.2 are prohibited or not ephemeral (RFC 9113 9.2.2)."""

CERTIFICATE_EXPIRES = "sidecar_tls_certificate_expires_timestamp_seconds"

_log = logging.getLogger("sidecar.transports")

Loaded = TypeVar("Loaded")


class UnreadableTlsError(ListenError):
    """A TLS file cannot be read at present; a retry may succeed."""


def signature(files: TlsFiles) -> Signature:
    """Return a value that changes when one of *files* is written or replaced; None = a missing file."""
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
    Return the result of *load* for changed *files*; None = they cannot be used. Counts and logs the result.

    While a file cannot be read, `episode` is open and the next check must retry.
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
        _log.error("TLS reload failed; the previous certificate stays in use: %s", error)
        return None
    episode.end()
    metrics.add("sidecar_tls_reloads_total", "ok")
    _log.info("TLS files reloaded: %s", files.certificate)
    warn_of_validity(files)
    return loaded


def certificate_end(content: bytes) -> datetime:
    """
    Return when the first certificate in *content* (PEM) expires.

    Raises:
        ValueError: *content* has no certificate.
    """
    from cryptography import x509

    return x509.load_pem_x509_certificates(content)[0].not_valid_after_utc


def certificate_problem(content: bytes, now: datetime) -> str:
    """
    Return why clients reject the first certificate in *content* (PEM) at the time *now*; '' = they accept it.

    Servers load certificates whatever their dates.
    """
    from cryptography import x509

    certificate = x509.load_pem_x509_certificates(content)[0]
    begin, end = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    if now > end:
        return f"expired at {end:%Y-%m-%dT%H:%M:%SZ}, so clients that verify it refuse to connect: renew it"
    if now < begin:
        return (
            f"is not valid before {begin:%Y-%m-%dT%H:%M:%SZ}, so clients that verify it refuse to connect:"
            " check the clock of this machine, or use another certificate"
        )
    return ""


def warn_of_validity(files: TlsFiles) -> None:
    """Log a warning if clients reject the certificate because of its dates."""
    try:
        problem = certificate_problem(_read(files.certificate), datetime.now(UTC))
    except (UnreadableTlsError, ValueError):
        return  # loading the file reports the error
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
    Return a context for gRPC over TLS: at least TLS 1.2, ALPN exactly h2 (RFC 9113 3.2, 9.2).

    Raises:
        UnreadableTlsError: a file cannot be read at present.
        ListenError: a file cannot be used; the message names it and says what to do.
    """
    for path in _paths(files):
        if len(_read(path)) > PEM_BYTES_MAX:
            raise ListenError(
                f"TLS file {path} is larger than {PEM_BYTES_MAX >> 20} MiB; it must be a PEM file"
            )
    try:
        return _server_context(files)
    except ssl.SSLError as error:
        raise ListenError(f"TLS files {files.certificate} and {files.key}: {error}; check both") from error
    except OSError as error:  # the file has become unreadable since the check above
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
        # The password function prevents OpenSSL from asking on the terminal for the password of a key.
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
        raise ListenError(f"TLS file {client_ca}: it has no PEM certificate of a CA") from error
    context.verify_mode = ssl.CERT_REQUIRED


class TlsContext:
    """The TLS context for new connections of one endpoint, reloaded when its files change."""

    def __init__(self, files: TlsFiles, metrics: Metrics, siblings: list[TlsContext] | None = None) -> None:
        """
        Load *files*; *siblings* are the other contexts of the same kind of listener.

        Raises:
            ListenError: a file cannot be used.
        """
        self._files = files
        self._metrics = metrics
        self._episode = ReadEpisode(metrics, "tls", str(files.certificate))
        self._signature = signature(files)
        self.ends_at_s = 0
        """When the certificate expires, Unix time; 0 = not known."""
        self.current = server_context(files)
        warn_of_validity(files)
        self._siblings = [] if siblings is None else siblings
        self._siblings.append(self)
        self._report_end()

    def _report_end(self) -> None:
        """Set the metric of the earliest end of a certificate of this kind of listener."""
        with contextlib.suppress(ListenError, ValueError):  # replaced meanwhile: a reload follows
            self.ends_at_s = int(certificate_end(_read(self._files.certificate)).timestamp())
        if self._files.listener:
            ends_at_s = min(filter(None, (context.ends_at_s for context in self._siblings)), default=0)
            self._metrics.set(CERTIFICATE_EXPIRES, self._files.listener, to=ends_at_s)

    def poll(self) -> None:
        """Reload the files if one of them has changed since the last check."""
        if signature(self._files) != self._signature:
            self.reload()

    def reload(self) -> bool:
        """Reload the files; False = they cannot be used, and the previous context stays in use."""
        # Read before the files: a change during the reload is detected at the next check.
        self._signature = signature(self._files)
        loaded = load_again(self._files, self._metrics, self._episode, lambda: server_context(self._files))
        if self._episode.is_open:
            self._signature = UNREAD
        if loaded is not None:
            self.current = loaded
            self._report_end()
        return loaded is not None


def tls_contexts(endpoints: Iterable[Endpoint], metrics: Metrics) -> list[TlsContext | None]:
    """
    Return the context of each endpoint; None = no TLS.

    Raises:
        ListenError: a file cannot be used.
    """
    siblings: list[TlsContext] = []
    return [
        None if endpoint.tls is None else TlsContext(endpoint.tls, metrics, siblings)
        for endpoint in endpoints
    ]
