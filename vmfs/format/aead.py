"""AES-256-GCM behind one small seam, with two providers that give identical bytes.

`cryptography` is used where it can be imported: it is several times faster here. pycryptodome is the
reference and always there. Both check the tag before they give any plaintext out.
"""

from __future__ import annotations

from typing import Protocol

from vmfs.format.errors import AuthenticationError

KEY_SIZE = 32
NONCE_SIZE = 12
TAG_SIZE = 16

Buffer = bytes | bytearray | memoryview


class Provider(Protocol):
    name: str

    def encrypt(self, key: bytes, nonce: bytes, plain: Buffer, aad: bytes) -> bytes:
        """The ciphertext followed by its 16-byte tag."""

    def encrypt_into(self, key: bytes, nonce: bytes, plain: Buffer, aad: bytes, out: memoryview) -> None:
        """The same into `out`, which is exactly as long as plaintext and tag."""

    def decrypt(self, key: bytes, nonce: bytes, sealed: Buffer, aad: bytes) -> bytes:
        """The plaintext. Raises AuthenticationError if any bit of the arguments is not what was sealed."""

    def decrypt_into(self, key: bytes, nonce: bytes, sealed: Buffer, aad: bytes, out: memoryview) -> None:
        """The same into `out`, exactly as long as the plaintext; after an error it holds anything."""


class PyCryptodome:
    name = "pycryptodome"

    def encrypt(self, key: bytes, nonce: bytes, plain: Buffer, aad: bytes) -> bytes:
        from Crypto.Cipher import AES

        cipher = AES.new(key, AES.MODE_GCM, nonce=nonce, mac_len=TAG_SIZE)
        cipher.update(aad)
        sealed, tag = cipher.encrypt_and_digest(plain)
        return sealed + tag

    def encrypt_into(self, key: bytes, nonce: bytes, plain: Buffer, aad: bytes, out: memoryview) -> None:
        from Crypto.Cipher import AES

        cipher = AES.new(key, AES.MODE_GCM, nonce=nonce, mac_len=TAG_SIZE)
        cipher.update(aad)
        cipher.encrypt(plain, output=out[: len(plain)])
        out[len(plain) :] = cipher.digest()

    def decrypt(self, key: bytes, nonce: bytes, sealed: Buffer, aad: bytes) -> bytes:
        out = bytearray(max(0, len(sealed) - TAG_SIZE))
        self.decrypt_into(key, nonce, sealed, aad, memoryview(out))
        return bytes(out)

    def decrypt_into(self, key: bytes, nonce: bytes, sealed: Buffer, aad: bytes, out: memoryview) -> None:
        from Crypto.Cipher import AES

        if len(sealed) < TAG_SIZE:
            raise AuthenticationError("sealed bytes are shorter than their tag")
        view = memoryview(sealed)
        cipher = AES.new(key, AES.MODE_GCM, nonce=nonce, mac_len=TAG_SIZE)
        cipher.update(aad)
        try:
            cipher.decrypt_and_verify(view[:-TAG_SIZE], bytes(view[-TAG_SIZE:]), output=out)
        except ValueError:
            raise AuthenticationError("authentication failed") from None


class Cryptography:
    name = "cryptography"

    def encrypt(self, key: bytes, nonce: bytes, plain: Buffer, aad: bytes) -> bytes:
        return AESGCM(key).encrypt(nonce, plain, aad)

    def encrypt_into(self, key: bytes, nonce: bytes, plain: Buffer, aad: bytes, out: memoryview) -> None:
        AESGCM(key).encrypt_into(nonce, plain, aad, out)

    def decrypt(self, key: bytes, nonce: bytes, sealed: Buffer, aad: bytes) -> bytes:
        try:
            return AESGCM(key).decrypt(nonce, sealed, aad)
        except (InvalidTag, ValueError):
            raise AuthenticationError("authentication failed") from None

    def decrypt_into(self, key: bytes, nonce: bytes, sealed: Buffer, aad: bytes, out: memoryview) -> None:
        try:
            AESGCM(key).decrypt_into(nonce, sealed, aad, out)
        except (InvalidTag, ValueError):
            raise AuthenticationError("authentication failed") from None


try:
    from cryptography.exceptions import InvalidTag
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM
except ImportError:
    provider: Provider = PyCryptodome()
else:
    provider = Cryptography()
