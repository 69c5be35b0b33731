"""Certificates of the lab: an authority like the engine's, and what it signs for servers on this machine."""

from __future__ import annotations

import datetime
import ipaddress
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

YEAR = datetime.timedelta(days=365)
DAY = datetime.timedelta(days=1)


@dataclass(frozen=True)
class ServerCertificate:
    """PEM files for a TLS server: the certificate for 127.0.0.1 and localhost, and its private key (0600)."""

    cert_file: Path
    key_file: Path


@dataclass(frozen=True)
class Authority:
    """A certificate authority in a folder. Two of them are foreign to each other, whatever their names."""

    folder: Path
    ca_file: Path
    """The authority's own certificate, PEM: what a client is to trust."""

    @classmethod
    def create(cls, folder: Path, name: str = "lab") -> Self:
        """A new authority, its files in `folder` (made when missing)."""
        folder.mkdir(parents=True, exist_ok=True)
        key = ec.generate_private_key(ec.SECP256R1())
        now = datetime.datetime.now(datetime.UTC)
        subject = x509.Name(
            [
                x509.NameAttribute(NameOID.ORGANIZATION_NAME, "vmfs lab"),
                x509.NameAttribute(NameOID.COMMON_NAME, f"{name} CA"),
            ]
        )
        # Python 3.13 checks X.509 strictly: critical basicConstraints, and key ids on both sides.
        certificate = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(subject)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - 3 * YEAR)
            .not_valid_after(now + 10 * YEAR)
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(_usage(signs=True), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(key.public_key()), critical=False
            )
            .sign(key, hashes.SHA256())
        )
        _write(folder / "ca-key.pem", _pem(key), secret=True)
        _write(folder / "ca.pem", certificate.public_bytes(serialization.Encoding.PEM))
        return cls(folder, folder / "ca.pem")

    def issue(self, name: str, *, expired: bool = False) -> ServerCertificate:
        """A new server certificate, files `<name>.pem` and `<name>-key.pem` in the folder. `expired`: it was
        valid for a year that ended yesterday."""
        authority = x509.load_pem_x509_certificate(self.ca_file.read_bytes())
        signer = serialization.load_pem_private_key((self.folder / "ca-key.pem").read_bytes(), None)
        assert isinstance(signer, ec.EllipticCurvePrivateKey)  # noqa: S101 we wrote it
        key = ec.generate_private_key(ec.SECP256R1())
        end = datetime.datetime.now(datetime.UTC) + (-DAY if expired else YEAR)
        names = [x509.DNSName("localhost"), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
        certificate = (
            x509.CertificateBuilder()
            .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]))
            .issuer_name(authority.subject)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(end - YEAR - DAY)
            .not_valid_after(end)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_usage(signs=False), critical=True)
            .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
            .add_extension(x509.SubjectAlternativeName(names), critical=False)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key()), critical=False
            )
            .sign(signer, hashes.SHA256())
        )
        made = ServerCertificate(self.folder / f"{name}.pem", self.folder / f"{name}-key.pem")
        _write(made.key_file, _pem(key), secret=True)
        _write(made.cert_file, certificate.public_bytes(serialization.Encoding.PEM))
        return made


def _usage(*, signs: bool) -> x509.KeyUsage:
    """What the key is for: signing certificates, or TLS."""
    return x509.KeyUsage(
        digital_signature=not signs,
        key_cert_sign=signs,
        crl_sign=signs,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def _write(path: Path, content: bytes, *, secret: bool = False) -> None:
    path.touch(mode=0o600 if secret else 0o644)
    path.write_bytes(content)
