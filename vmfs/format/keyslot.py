"""A key slot: the master key and a signing seed, wrapped by one passphrase or key file.

    offset size
         0    4  magic "VMFK"
         4    1  version
         5    1  kdf       1 scrypt of a passphrase, 2 key file
         6    1  log2(N)   scrypt cost; zero for a key file
         7    1  r
         8    1  p
         9    1  zero
        10    2  length of the label, bytes
        12    8  time of making, milliseconds since 1970 UTC
        20   32  salt
        52   12  nonce
        64   32  Ed25519 public key of the seed inside
        96    …  label, UTF-8
         …   80  AES-256-GCM of master key (32) and signing seed (32), with tag;
                 associated data: all of the above, the repository id, the object's name
         …   32  checksum: plain BLAKE3 of all of the above

scrypt is RFC 7914. A key file's bytes (32 or more) are taken through keyed BLAKE3 with the salt.
"""

from __future__ import annotations

import hashlib
import struct
from enum import IntEnum
from typing import NamedTuple

from blake3 import blake3

from vmfs.format import VERSION, aead, signing
from vmfs.format.errors import AuthenticationError, ContentError, LengthError, MagicError, VersionError

MAGIC = b"VMFK"
HEAD = struct.Struct("<4sBBBBBBHQ32s12s32s")
_WRAPPED = 64 + aead.TAG_SIZE
_CHECKSUM = 32
MIN_COST, MAX_COST = 10, 22
MIN_KEY_FILE = 32
MAX_LABEL = 255


class Kdf(IntEnum):
    SCRYPT = 1
    KEY_FILE = 2


class Slot(NamedTuple):
    """The clear part. `cost` is log2 of scrypt's N."""

    kdf: Kdf
    cost: int
    r: int
    p: int
    created_ms: int
    salt: bytes
    nonce: bytes
    public: bytes
    label: str


class Opened(NamedTuple):
    master: bytes
    seed: bytes


def new_slot(
    kdf: Kdf, cost: int, created_ms: int, salt: bytes, nonce: bytes, seed: bytes, label: str
) -> Slot:
    scrypt = kdf is Kdf.SCRYPT
    public = signing.provider.public(seed)
    return Slot(kdf, cost if scrypt else 0, 8 * scrypt, 1 * scrypt, created_ms, salt, nonce, public, label)


def wrap(slot: Slot, opened: Opened, secret: bytes, *, name: str, repository_id: bytes) -> bytes:
    """The whole object, to be stored as `name`."""
    label = slot.label.encode()
    if len(label) > MAX_LABEL:
        raise ValueError(f"a label has at most {MAX_LABEL} bytes")
    head = HEAD.pack(
        MAGIC, VERSION, slot.kdf, slot.cost, slot.r, slot.p, 0, len(label),
        slot.created_ms, slot.salt, slot.nonce, slot.public,
    ) + label  # fmt: skip
    aad = head + repository_id + name.encode()
    key = _wrapping_key(slot, secret)
    body = head + aead.provider.encrypt(key, slot.nonce, opened.master + opened.seed, aad)
    return body + blake3(body).digest()


def parse(data: bytes) -> Slot:
    """The clear part, checked against damage but not authenticated."""
    if len(data) < HEAD.size + _WRAPPED + _CHECKSUM:
        raise LengthError("key slot is cut short")
    if data[:4] != MAGIC:
        raise MagicError("this is no key slot")
    if data[4] != VERSION:
        raise VersionError(f"key slot has format version {data[4]}; this program knows {VERSION}")
    if blake3(data[:-_CHECKSUM]).digest() != data[-_CHECKSUM:]:
        raise AuthenticationError("key slot is damaged: its checksum does not match")
    _, _, kdf, cost, r, p, zero, length, created, salt, nonce, public = HEAD.unpack_from(data)
    if len(data) != HEAD.size + length + _WRAPPED + _CHECKSUM or zero:
        raise LengthError("key slot is not as long as it says")
    try:
        label = data[HEAD.size : HEAD.size + length].decode()
        slot = Slot(Kdf(kdf), cost, r, p, created, salt, nonce, public, label)
    except ValueError:
        raise ContentError("key slot makes no sense") from None
    # Bounds, or a forged slot could ask for any amount of memory and time.
    if slot.kdf is Kdf.SCRYPT and not (MIN_COST <= cost <= MAX_COST and r == 8 and p == 1):
        raise ContentError("key slot asks for an unreasonable scrypt cost")
    return slot


def unwrap(data: bytes, secret: bytes, *, name: str, repository_id: bytes) -> Opened | None:
    """The keys, or None when `secret` is not this slot's."""
    slot = parse(data)
    end = HEAD.size + len(slot.label.encode())
    aad = data[:end] + repository_id + name.encode()
    try:
        plain = aead.provider.decrypt(_wrapping_key(slot, secret), slot.nonce, data[end:-_CHECKSUM], aad)
    except AuthenticationError:
        return None
    return Opened(plain[:32], plain[32:])


def _wrapping_key(slot: Slot, secret: bytes) -> bytes:
    if slot.kdf is Kdf.SCRYPT:
        memory = 128 * slot.r * (1 << slot.cost) + (1 << 20)
        return hashlib.scrypt(
            secret, salt=slot.salt, n=1 << slot.cost, r=slot.r, p=slot.p, dklen=32, maxmem=memory
        )
    return blake3(secret, key=blake3(slot.salt, derive_key_context="vmfs v1 key file").digest()).digest()
