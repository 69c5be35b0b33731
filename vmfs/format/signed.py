"""A sealed object that one of the key slots has signed: a point, or a note.

Its plaintext is the signer's Ed25519 public key, the signature, and the body. What is signed is the context,
the repository's id, the object's name, a zero byte, and the body: no signature serves for another object.
"""

from __future__ import annotations

from typing import NamedTuple

from vmfs.format import sealed, signing
from vmfs.format.errors import AuthenticationError, LengthError
from vmfs.format.keys import Keys, SealedType

_OVERHEAD = signing.PUBLIC_SIZE + signing.SIGNATURE_SIZE


class SignedBody(NamedTuple):
    """`signer` is the Ed25519 public key of the key slot."""

    signer: bytes
    body: bytes


class SignedKind(NamedTuple):
    """The type of such objects, and what begins everything that is signed of them."""

    type: SealedType
    context: bytes

    def encode(self, name: str, body: bytes, *, seed: bytes, nonce: bytes, keys: Keys) -> bytes:
        """The whole object to be stored as `name`, signed with the Ed25519 `seed`."""
        signature = signing.provider.sign(seed, self._message(name, body, keys))
        plain = signing.provider.public(seed) + signature + body
        return sealed.seal(self.type, name, plain, nonce=nonce, keys=keys)

    def decode(self, name: str, data: bytes, keys: Keys) -> SignedBody:
        """Raises what `sealed.unseal` does, LengthError, and AuthenticationError for a bad signature."""
        plain = sealed.unseal(self.type, name, data, keys)
        if len(plain) < _OVERHEAD:
            raise LengthError(f"{name} is too short to be signed")
        signer, signature = plain[: signing.PUBLIC_SIZE], plain[signing.PUBLIC_SIZE : _OVERHEAD]
        body = plain[_OVERHEAD:]
        if not signing.provider.verify(signer, self._message(name, body, keys), signature):
            raise AuthenticationError(f"{name} does not carry a valid signature")
        return SignedBody(signer, body)

    def _message(self, name: str, body: bytes, keys: Keys) -> bytes:
        return self.context + keys.repository_id + name.encode() + b"\0" + body
