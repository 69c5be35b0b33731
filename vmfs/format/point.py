"""The content of a point object: who signed, the signature, and the manifest.

offset size
     0   32  Ed25519 public key of the key slot that wrote it
    32   64  signature over "vmfs v1 point", a zero byte, the repository id,
             the object's name, a zero byte, the manifest
    96    …  manifest, canonical JSON
"""

from __future__ import annotations

from typing import NamedTuple

from vmfs.format.keys import Keys, SealedType
from vmfs.format.manifest import Manifest
from vmfs.format.signed import SignedKind

_OBJECT = SignedKind(SealedType.POINT, b"vmfs v1 point\0")


class SignedManifest(NamedTuple):
    signer: bytes
    manifest: Manifest


def encode(name: str, manifest: Manifest, *, seed: bytes, nonce: bytes, keys: Keys) -> bytes:
    """The whole object to be stored as `name`, signed with the Ed25519 `seed`."""
    return _OBJECT.encode(name, manifest.to_bytes(), seed=seed, nonce=nonce, keys=keys)


def decode(name: str, data: bytes, keys: Keys) -> SignedManifest:
    signer, body = _OBJECT.decode(name, data, keys)
    return SignedManifest(signer, Manifest.from_bytes(body))
