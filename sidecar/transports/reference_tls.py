"""Certificates of the reference transport, read again when one of their files changes."""

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
    Credentials that follow their files: core asks before each handshake, and gets them if they changed.

    With a client CA, only clients with a certificate that it signed get through the handshake.
    """

    def __init__(self, files: TlsFiles, metrics: Metrics) -> None:
        """
        Load *files*.

        Raises:
            ListenError: one cannot be used; names it and says what to do.
        """
        self._files = files
        self._metrics = metrics
        self._lock = threading.Lock()  # core fetches on threads of its own
        self._episode = ReadEpisode(metrics, "tls", str(files.certificate))
        self._signature = signature(files)
        self._fresh: grpc.ServerCertificateConfiguration | None = None
        self.credentials = grpc.dynamic_ssl_server_credentials(
            self._load(),
            # The stubs lack the None that means 'nothing new'.
            cast("Callable[[], grpc.ServerCertificateConfiguration]", self._fetch),
            require_client_authentication=files.client_ca is not None,
        )
        warn_of_validity(files)

    def reload(self) -> bool:
        """Load the files again for the next handshake; False = they cannot be used, the former stay."""
        with self._lock:
            return self._reload()

    def _fetch(self) -> grpc.ServerCertificateConfiguration | None:
        with self._lock:
            if signature(self._files) != self._signature:
                self._reload()
            fresh, self._fresh = self._fresh, None
            return fresh

    def _reload(self) -> bool:
        # Taken before reading: a change during the reading is seen at the next look.
        self._signature = signature(self._files)
        loaded = load_again(self._files, self._metrics, self._episode, self._load)
        if self._episode.is_open:
            self._signature = UNREAD
        self._fresh = loaded or self._fresh
        return loaded is not None

    def _load(self) -> grpc.ServerCertificateConfiguration:
        files = self._files
        server_context(files)  # core takes anything and then fails each handshake: let OpenSSL judge first
        try:
            authorities = None if files.client_ca is None else files.client_ca.read_bytes()
            pair = (files.key.read_bytes(), files.certificate.read_bytes())
        except OSError as error:
            raise UnreadableTlsError(f"TLS file {error.filename}: {error.strerror}; put it back") from error
        return grpc.ssl_server_certificate_configuration([pair], authorities)
