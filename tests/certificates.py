"""Certificates for tests: an authority and what it signs, as values and as files."""

from __future__ import annotations

import datetime
import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from sidecar.transports.server import TlsFiles


@dataclass(frozen=True)
class Identity:
    """A certificate and its key, PEM."""

    certificate: bytes
    key: bytes


class Authority:
    """Signs certificates with a key made for one test run."""

    def __init__(self, name: str) -> None:
        """Make the authority's own key and certificate."""
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        self._key = ec.generate_private_key(ec.SECP256R1())
        builder = _builder(self._name, self._name, self._key.public_key())
        signed = builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True).sign(
            self._key, hashes.SHA256()
        )
        self.certificate = signed.public_bytes(serialization.Encoding.PEM)

    def issue(
        self, name: str, ends: datetime.datetime | None = None, addresses: Sequence[str] = ("127.0.0.1",)
    ) -> Identity:
        """
        A certificate for *name* on this machine, as server and as client; *ends* None = tomorrow.

        It is valid for localhost and *addresses*.
        """
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        names: list[x509.GeneralName] = [x509.DNSName("localhost")]
        names += [x509.IPAddress(ipaddress.ip_address(address)) for address in addresses]
        builder = _builder(subject, self._name, key.public_key(), ends)
        signed = builder.add_extension(x509.SubjectAlternativeName(names), critical=False).sign(
            self._key, hashes.SHA256()
        )
        return Identity(
            signed.public_bytes(serialization.Encoding.PEM),
            key.private_bytes(
                serialization.Encoding.PEM,
                serialization.PrivateFormat.PKCS8,
                serialization.NoEncryption(),
            ),
        )


class AuthorityFolder:
    """An authority whose certificate and signed pairs are PEM files in *folder*; `ca` is its certificate."""

    def __init__(self, folder: Path, name: str = "ca") -> None:
        """Make the authority."""
        self._folder = folder
        self._authority = Authority(name)
        self.ca = folder / f"{name}.pem"
        self.ca.write_bytes(self._authority.certificate)

    def sign(self, name: str) -> tuple[Path, Path]:
        """Certificate and key for *name* on localhost; again = a new pair in the same files."""
        identity = self._authority.issue(name, addresses=())
        certificate, key = self._folder / f"{name}.crt", self._folder / f"{name}.key"
        certificate.write_bytes(identity.certificate)
        key.write_bytes(identity.key)
        return certificate, key


def encrypt_key(path: Path) -> None:
    """Rewrite a key file so that it needs a password."""
    key = serialization.load_pem_private_key(path.read_bytes(), None)
    path.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.BestAvailableEncryption(b"secret"),
        )
    )


def _builder(
    subject: x509.Name,
    issuer: x509.Name,
    key: ec.EllipticCurvePublicKey,
    ends: datetime.datetime | None = None,
) -> x509.CertificateBuilder:
    now = datetime.datetime.now(datetime.UTC)
    ends = ends or now + datetime.timedelta(days=1)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(min(now, ends) - datetime.timedelta(hours=1))
        .not_valid_after(ends)
    )


def write(files: TlsFiles, identity: Identity, client_ca: bytes | None = None) -> None:
    """Put an identity into *files*, each replaced whole, as a certificate manager does it."""
    contents = {files.certificate: identity.certificate, files.key: identity.key}
    if files.client_ca is not None and client_ca is not None:
        contents[files.client_ca] = client_ca
    for path, content in contents.items():
        replace(path, content)


def replace(path: Path, content: bytes) -> None:
    """Write beside *path* and rename over it."""
    staged = path.with_name(path.name + ".new")
    staged.write_bytes(content)
    staged.rename(path)
