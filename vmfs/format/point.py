"""The content of a point object: who signed, the signature, and the manifest.

offset size
     0   32  Ed25519 public key of the key slot that wrote it
    32   64  signature over "vmfs v1 point", a zero byte, the repository id,
             the object's name, a zero byte, the manifest
    96    …  manifest, canonical JSON
"""

from __future__ import annotations

from typing import NamedTuple

from vmfs.format import sealed, signing
from vmfs.format.errors import AuthenticationError, LengthError
from vmfs.format.keys import Keys, SealedType
from vmfs.format.manifest import Manifest

_CONTEXT = b"vmfs v1 point\0"
_SIGNED = signing.PUBLIC_SIZE + signing.SIGNATURE_SIZE


class SignedManifest(NamedTuple):
    signer: bytes
    manifest: Manifest


def encode(name: str, manifest: Manifest, *, seed: bytes, nonce: bytes, keys: Keys) -> bytes:
    """The whole object to be stored as `name`, signed with the Ed25519 `seed`."""
    body = manifest.to_bytes()
    signature = signing.provider.sign(seed, _message(name, body, keys))
    plain = signing.provider.public(seed) + signature + body
    return sealed.seal(SealedType.POINT, name, plain, nonce=nonce, keys=keys)


def decode(name: str, data: bytes, keys: Keys) -> SignedManifest:
    plain = sealed.unseal(SealedType.POINT, name, data, keys)
    if len(plain) < _SIGNED:
        raise LengthError(f"{name} is too short to be signed")
    signer, signature = plain[: signing.PUBLIC_SIZE], plain[signing.PUBLIC_SIZE : _SIGNED]
    body = plain[_SIGNED:]
    if not signing.provider.verify(signer, _message(name, body, keys), signature):
        raise AuthenticationError(f"{name} does not carry a valid signature")
    return SignedManifest(signer, Manifest.from_bytes(body))


def _message(name: str, body: bytes, keys: Keys) -> bytes:
    return _CONTEXT + keys.repository_id + name.encode() + b"\0" + body
