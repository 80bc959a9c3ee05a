"""Certificates of the reference transport, read again when one of their files changes."""

from __future__ import annotations

import logging
import ssl
import threading
from collections.abc import Callable
from pathlib import Path
from typing import cast

import grpc

from sidecar.transports.server import Endpoint, ListenError, TlsFiles

_LOG = logging.getLogger(__name__)

_Stamps = tuple[tuple[int, int, int], ...]


def server_credentials(endpoint: Endpoint, files: TlsFiles) -> grpc.ServerCredentials:
    """
    Credentials that follow *files*; with a client CA, clients must show a certificate it signed.

    Raises:
        ListenError: the files cannot be used; names the endpoint and says why.
    """
    try:
        source = CertificateSource(files)
    except (OSError, ssl.SSLError) as error:
        raise ListenError(f"cannot listen on {endpoint} with TLS: {_reason(files, error)}") from error
    return grpc.dynamic_ssl_server_credentials(
        source.initial,
        cast("Callable[[], grpc.ServerCertificateConfiguration]", source.fetch),  # the stubs lack its None
        require_client_authentication=files.client_ca is not None,
    )


def _reason(files: TlsFiles, error: OSError) -> str:
    if error.filename is not None:
        return f"cannot read {error.filename} ({error.strerror}); check the path and its permissions"
    names = ", ".join(str(path) for path in _paths(files))
    return f"{error}; check that {names} are PEM files and that the key is the certificate's"


def _paths(files: TlsFiles) -> tuple[Path, ...]:
    return tuple(path for path in (files.certificate, files.key, files.client_ca) if path is not None)


class CertificateSource:
    """Loads the files once, and again at the first handshake after one of them changed."""

    def __init__(self, files: TlsFiles) -> None:
        """
        Load *files*.

        Raises:
            OSError: one cannot be read.
            ssl.SSLError: one is not PEM, or key and certificate do not belong together.
        """
        self._files = files
        self._lock = threading.Lock()  # core fetches on its own threads
        self._stamps = self._stamp()
        self.initial = self._load()

    def fetch(self) -> grpc.ServerCertificateConfiguration | None:
        """
        Called by core before each handshake.

        Returns:
            None when nothing changed; also when a change is unusable, which is logged once.
        """
        with self._lock:
            try:
                stamps = self._stamp()
                if stamps == self._stamps:
                    return None
                self._stamps = stamps
                return self._load()
            except (OSError, ssl.SSLError) as error:
                _LOG.warning("kept the former certificate: %s", _reason(self._files, error))
                return None

    def _stamp(self) -> _Stamps:
        stats = (path.stat() for path in _paths(self._files))
        return tuple((status.st_mtime_ns, status.st_ino, status.st_size) for status in stats)

    def _load(self) -> grpc.ServerCertificateConfiguration:
        files = self._files
        # Core would accept anything here and then fail each handshake: let OpenSSL judge first.
        judge = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        judge.load_cert_chain(files.certificate, files.key)
        authorities = None
        if files.client_ca is not None:
            judge.load_verify_locations(files.client_ca)
            authorities = files.client_ca.read_bytes()
        pair = (files.key.read_bytes(), files.certificate.read_bytes())
        return grpc.ssl_server_certificate_configuration([pair], authorities)
