"""A sealed object: one small thing, encrypted and bound to its type and to the name it is stored under.

    offset size
         0    4  magic "VMFS"
         4    1  version
         5    1  type    1 point, 2 note, 3 lease, 4 epoch, 5 trash
         6    1  codec   0 raw, 1 lz4 block
         7    1  zero
         8    4  plain length
        12   12  nonce
        24    …  AES-256-GCM ciphertext, then the 16-byte tag

Associated data: the header, the repository id, the object's name. A manifest moved to another name does not
open.
"""

from __future__ import annotations

import struct

import lz4.block
from blake3 import blake3

from vmfs.format import VERSION, aead
from vmfs.format.blob import Codec, compress
from vmfs.format.errors import AuthenticationError, ContentError, LengthError, MagicError, VersionError
from vmfs.format.keys import Keys, SealedType

MAGIC = b"VMFS"
HEADER = struct.Struct("<4sBBBBI12s")
MAX_PLAIN = 64 << 20
"""Bytes."""


def seal(kind: SealedType, name: str, plain: bytes, *, nonce: bytes, keys: Keys) -> bytes:
    if len(plain) > MAX_PLAIN:
        raise ValueError(f"a sealed object holds at most {MAX_PLAIN} bytes")
    codec, stored = compress(plain)
    header = HEADER.pack(MAGIC, VERSION, kind, codec, 0, len(plain), nonce)
    aad = header + keys.repository_id + name.encode()
    return header + aead.provider.encrypt(_key(kind, name, keys), nonce, stored, aad)


def unseal(kind: SealedType, name: str, data: bytes, keys: Keys) -> bytes:
    """The plaintext of the object of that type stored as `name`."""
    if len(data) < HEADER.size + aead.TAG_SIZE:
        raise LengthError(f"{name} is cut short")
    magic, version, found, codec, reserved, length, nonce = HEADER.unpack_from(data)
    if magic != MAGIC:
        raise MagicError(f"{name} is no sealed object")
    if version != VERSION:
        raise VersionError(f"{name} has format version {version}; this program knows {VERSION}")
    aad = data[: HEADER.size] + keys.repository_id + name.encode()
    try:
        stored = aead.provider.decrypt(_key(kind, name, keys), nonce, data[HEADER.size :], aad)
    except AuthenticationError:
        raise AuthenticationError(f"{name} was changed, moved, or is of another repository") from None
    if found != kind or reserved or length > MAX_PLAIN or codec not in (Codec.RAW, Codec.LZ4):
        raise ContentError(f"{name} makes no sense")
    try:
        plain = stored if codec == Codec.RAW else lz4.block.decompress(stored, uncompressed_size=length)
    except lz4.block.LZ4BlockError:
        raise ContentError(f"{name} does not decompress") from None
    if len(plain) != length:
        raise ContentError(f"{name} is not as long as it says")
    return plain


def _key(kind: SealedType, name: str, keys: Keys) -> bytes:
    return blake3(name.encode(), key=keys.sealed[kind]).digest()
