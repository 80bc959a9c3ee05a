"""Sends Check calls to a running sidecar, as Envoy does, through grpcio."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

import grpc

from sidecar.services.ext_authz import CHECK
from sidecar.services.ext_authz_client import Checked, read_response

TIMEOUT_S = 5.0


class AskError(Exception):
    """A sidecar did not answer; names the cause and what to check."""


@dataclass(frozen=True, slots=True)
class ClientTls:
    """PEM files: the CA that signed the sidecar's certificate, and a client certificate."""

    ca: Path
    certificate: Path | None = None
    key: Path | None = None


class Asker:
    """One connection to one sidecar."""

    def __init__(self, target: str, tls: ClientTls | None = None, timeout_s: float = TIMEOUT_S) -> None:
        """
        Connect to the sidecar at *target*: 'host:port' or 'unix:/path'.

        Raises:
            AskError: a TLS file cannot be read.
        """
        self._target = target
        self._timeout_s = timeout_s
        options = [("grpc.enable_http_proxy", 0)]
        if tls is None:
            self._channel = grpc.insecure_channel(target, options)
        else:
            self._channel = grpc.secure_channel(target, _credentials(tls), options)
        self._check = self._channel.unary_unary(CHECK, request_serializer=None, response_deserializer=None)

    def __enter__(self) -> Self:
        """Return itself; the connection is made by the first call."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the connection."""
        self._channel.close()

    def ask(self, request: bytes) -> Checked:
        """
        Send a serialized CheckRequest and return the answer.

        Raises:
            AskError: there was no answer.
        """
        try:
            message: bytes = self._check(request, timeout=self._timeout_s)
        except grpc.RpcError as error:
            code, detail = error.code(), error.details()
            raise AskError(
                f"no answer from {self._target}: {code.name} ({detail}); is the sidecar running, and does it"
                " listen on this address? See 'listen.grpc' and the log line 'serving'"
            ) from None
        return read_response(message)


def _credentials(tls: ClientTls) -> grpc.ChannelCredentials:
    try:
        ca = tls.ca.read_bytes()
        certificate = tls.certificate.read_bytes() if tls.certificate else None
        key = tls.key.read_bytes() if tls.key else None
    except OSError as error:
        raise AskError(f"TLS file {error.filename} cannot be read: {error.strerror}") from None
    return grpc.ssl_channel_credentials(ca, key, certificate)
