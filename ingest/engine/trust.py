"""Whom to believe that he is the engine: its CA, fetched once, shown to the user, and kept.

An engine has a CA of its own, made when it was set up, and hands it out at a well-known path: to whoever
asks, and so over a connection that nobody vouches for yet. What the user compares with the engine is the
fingerprint.
"""

from __future__ import annotations

import hashlib
import http.client
import re
import socket
import ssl
from dataclasses import dataclass
from urllib.parse import urlsplit

from ingest.engine.errors import TrustError, UnavailableError
from ingest.engine.settings import EngineSettings
from ingest.engine.transport import CONNECT_TIMEOUT, distrust, unverified_context
from vmfs.errors import UsageError

PKI_PATH = "/ovirt-engine/services/pki-resource?resource=ca-certificate&format=X509-PEM-CA"
MAX_CA = 1 << 20
"""Bytes."""

_PEM = re.compile(rb"-----BEGIN CERTIFICATE-----\s[A-Za-z0-9+/=\s]+-----END CERTIFICATE-----")


@dataclass(frozen=True, slots=True)
class Authority:
    """A CA certificate, in DER."""

    der: bytes

    @property
    def fingerprint(self) -> str:
        """SHA-256 as `openssl x509 -fingerprint -sha256` shows it: AB:CD:…"""
        return format_fingerprint(hashlib.sha256(self.der).hexdigest())

    @property
    def pem(self) -> str:
        return ssl.DER_cert_to_PEM_cert(self.der)


def parse_fingerprint(text: str) -> str:
    """From hex digits of SHA-256, with or without colons. Raises UsageError."""
    digits = text.replace(":", "").replace(" ", "").lower().removeprefix("sha256=")
    if not re.fullmatch(r"[0-9a-f]{64}", digits):
        raise UsageError(f"{text!a} is no SHA-256 fingerprint; it has 64 hexadecimal digits")
    return format_fingerprint(digits)


def format_fingerprint(digits: str) -> str:
    return ":".join(digits[i : i + 2] for i in range(0, len(digits), 2)).upper()


def fetch_authority(settings: EngineSettings) -> Authority:
    """The CA that whoever answers at the engine's address hands out. Raises UnavailableError, TrustError."""
    parts = urlsplit(settings.url)
    connection = http.client.HTTPSConnection(
        parts.hostname or "", parts.port or 443, timeout=CONNECT_TIMEOUT, context=unverified_context()
    )
    try:
        connection.request("GET", PKI_PATH, headers={"Connection": "close"})
        answer = connection.getresponse()
        content = answer.read(MAX_CA)
    except (OSError, http.client.HTTPException) as error:
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise UnavailableError(f"engine at {parts.netloc} cannot be reached: {reason}") from None
    finally:
        connection.close()
    found = _PEM.findall(content)
    if answer.status != http.client.OK or not found:
        raise TrustError(
            f"{parts.netloc} hands out no CA certificate (HTTP {answer.status}); "
            "is it the address of an engine?"
        )
    if len(found) > 1:
        raise TrustError(f"{parts.netloc} hands out {len(found)} certificates, not that of its CA")
    try:
        authority = Authority(ssl.PEM_cert_to_DER_cert(found[0].decode("ascii")))
        context_of(authority)
    except (ValueError, ssl.SSLError):
        raise TrustError(f"{parts.netloc} hands out a CA certificate that cannot be read") from None
    return authority


def check_authority(settings: EngineSettings, authority: Authority) -> None:
    """That the certificate which the engine itself shows is of this CA, of this name, and in date. Raises
    TrustError, UnavailableError."""
    parts = urlsplit(settings.url)
    address = (parts.hostname or "", parts.port or 443)
    try:
        with (
            socket.create_connection(address, CONNECT_TIMEOUT) as plain,
            context_of(authority).wrap_socket(plain, server_hostname=parts.hostname),
        ):
            pass
    except ssl.SSLCertVerificationError as error:
        raise TrustError(
            f"the certificate of {parts.netloc} is not trusted: {_why(error, settings)}"
        ) from None
    except OSError as error:
        raise UnavailableError(
            f"engine at {parts.netloc} cannot be reached: {error.strerror or error}"
        ) from None


def context_of(authority: Authority) -> ssl.SSLContext:
    """Trusts this CA and no other. Raises ssl.SSLError, ValueError for what is no certificate."""
    context = ssl.create_default_context(cadata=authority.pem)
    context.verify_flags &= ~ssl.VERIFY_X509_STRICT
    return context


def _why(error: ssl.SSLCertVerificationError, settings: EngineSettings) -> str:
    if error.verify_code in (9, 10, 62, 64):
        return distrust(error, settings)
    why = error.verify_message.rstrip(".")
    return (
        f"it is not of the CA that the same address hands out ({why[:1].lower()}{why[1:]}); "
        "if it is of a CA of your own, give that one's file as ca_file"
    )
