"""Ed25519 (RFC 8032) signatures, by the same two providers as aead."""

from __future__ import annotations

SEED_SIZE = 32
PUBLIC_SIZE = 32
SIGNATURE_SIZE = 64


class PyCryptodome:
    name = "pycryptodome"

    def public(self, seed: bytes) -> bytes:
        from Crypto.PublicKey import ECC

        return ECC.construct(curve="Ed25519", seed=seed).public_key().export_key(format="raw")

    def sign(self, seed: bytes, message: bytes) -> bytes:
        from Crypto.PublicKey import ECC
        from Crypto.Signature import eddsa

        return eddsa.new(ECC.construct(curve="Ed25519", seed=seed), "rfc8032").sign(message)

    def verify(self, public: bytes, message: bytes, signature: bytes) -> bool:
        from Crypto.Signature import eddsa

        try:
            eddsa.new(eddsa.import_public_key(public), "rfc8032").verify(message, signature)
        except ValueError:
            return False
        return True


class Cryptography:
    name = "cryptography"

    def public(self, seed: bytes) -> bytes:
        return Ed25519PrivateKey.from_private_bytes(seed).public_key().public_bytes_raw()

    def sign(self, seed: bytes, message: bytes) -> bytes:
        return Ed25519PrivateKey.from_private_bytes(seed).sign(message)

    def verify(self, public: bytes, message: bytes, signature: bytes) -> bool:
        try:
            Ed25519PublicKey.from_public_bytes(public).verify(signature, message)
        except (InvalidSignature, ValueError):
            return False
        return True


provider: PyCryptodome | Cryptography
try:
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
except ImportError:
    provider = PyCryptodome()
else:
    provider = Cryptography()
