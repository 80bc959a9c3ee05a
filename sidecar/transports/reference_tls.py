"""Certificates of the reference transport, reloaded when one of their files changes."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import cast

import grpc

from sidecar.observe.file_reading import ReadEpisode
from sidecar.observe.metrics import Metrics
from sidecar.transports.server import TlsFiles
from sidecar.transports.tls import (
    UNREAD,
    UnreadableTlsError,
    load_again,
    server_context,
    signature,
    warn_of_validity,
)


class CertificateSource:
    """
    Provides credentials to grpc-core, which asks for changes before each handshake.

    With a client CA, only clients with a certificate from this CA complete the handshake.
    """

    def __init__(self, files: TlsFiles, metrics: Metrics) -> None:
        """
        Load *files*.

        Raises:
            ListenError: a file cannot be used; the message names it and says what to do.
        """
        self._files = files
        self._metrics = metrics
        self._lock = threading.Lock()  # grpc-core calls `_fetch` on its own threads
        self._episode = ReadEpisode(metrics, "tls", str(files.certificate))
        self._signature = signature(files)
        self._fresh: grpc.ServerCertificateConfiguration | None = None
        self.credentials = grpc.dynamic_ssl_server_credentials(
            self._load(),
            # The type stubs lack None, which means 'unchanged'.
            cast("Callable[[], grpc.ServerCertificateConfiguration]", self._fetch),
            require_client_authentication=files.client_ca is not None,
        )
        warn_of_validity(files)

    def reload(self) -> bool:
        """Reload the files for the next handshake; False = they cannot be used, the previous stay in use."""
        with self._lock:
            return self._reload()

    def _fetch(self) -> grpc.ServerCertificateConfiguration | None:
        with self._lock:
            if signature(self._files) != self._signature:
                self._reload()
            fresh, self._fresh = self._fresh, None
            return fresh

    def _reload(self) -> bool:
        # Read before the files: a change during the reload is detected at the next check.
        self._signature = signature(self._files)
        loaded = load_again(self._files, self._metrics, self._episode, self._load)
        if self._episode.is_open:
            self._signature = UNREAD
        self._fresh = loaded or self._fresh
        return loaded is not None

    def _load(self) -> grpc.ServerCertificateConfiguration:
        files = self._files
        server_context(files)  # validates: grpc-core accepts any files, and then every handshake fails
        try:
            authorities = None if files.client_ca is None else files.client_ca.read_bytes()
            pair = (files.key.read_bytes(), files.certificate.read_bytes())
        except OSError as error:
            raise UnreadableTlsError(f"TLS file {error.filename}: {error.strerror}; restore it") from error
        return grpc.ssl_server_certificate_configuration([pair], authorities)
