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
         …   32  MAC: keyed BLAKE3, by a key of the master key, of all of the above,
                 the repository id, the object's name
         …   32  checksum: plain BLAKE3 of all of the above

scrypt is RFC 7914. A key file's bytes (32 or more) are taken through keyed BLAKE3 with the salt. Label, time
and public key are believed only when the MAC holds: whoever keeps the store could write slots of his own. The
MAC also commits to the secret, which AES-GCM does not: no slot can be made that opens with two of them.
"""

from __future__ import annotations

import hashlib
import hmac
import struct
import unicodedata
from dataclasses import dataclass, field
from enum import IntEnum
from typing import NamedTuple

from blake3 import blake3

from vmfs.format import VERSION, aead, signing
from vmfs.format.errors import AuthenticationError, ContentError, LengthError, MagicError, VersionError
from vmfs.format.keys import derive_keys

MAGIC = b"VMFK"
HEAD = struct.Struct("<4sBBBBBBHQ32s12s32s")
_WRAPPED = 64 + aead.TAG_SIZE
_MAC = 32
_CHECKSUM = 32
_FIXED = HEAD.size + _WRAPPED + _MAC + _CHECKSUM
MIN_COST, MAX_COST = 10, 20
"""log2 of scrypt's N: 1 MiB to 1 GiB of memory. Python's scrypt takes no more than 2 GiB."""
MIN_KEY_FILE = 32
MAX_LABEL = 255
_MAX_CREATED = 253_402_300_800_000
"""The year 10000, milliseconds: no calendar of Python reaches it."""


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


@dataclass(frozen=True, slots=True)
class Opened:
    master: bytes = field(repr=False)
    seed: bytes = field(repr=False)


def new_slot(
    kdf: Kdf, cost: int, created_ms: int, salt: bytes, nonce: bytes, seed: bytes, label: str
) -> Slot:
    scrypt = kdf is Kdf.SCRYPT
    public = signing.provider.public(seed)
    return Slot(kdf, cost if scrypt else 0, 8 * scrypt, 1 * scrypt, created_ms, salt, nonce, public, label)


def wrap(slot: Slot, opened: Opened, secret: bytes, *, name: str, repository_id: bytes) -> bytes:
    """The whole object, to be stored as `name`. Raises ValueError for a label that cannot be."""
    if not valid_label(slot.label):
        raise ValueError(f"a label has at most {MAX_LABEL} bytes and no control characters")
    label = slot.label.encode()
    head = HEAD.pack(
        MAGIC, VERSION, slot.kdf, slot.cost, slot.r, slot.p, 0, len(label),
        slot.created_ms, slot.salt, slot.nonce, slot.public,
    ) + label  # fmt: skip
    aad = head + repository_id + name.encode()
    key = _wrapping_key(slot, secret)
    body = head + aead.provider.encrypt(key, slot.nonce, opened.master + opened.seed, aad)
    body += _mac(body, opened.master, name, repository_id)
    return body + blake3(body).digest()


def parse(data: bytes) -> Slot:
    """The clear part, checked against damage but not authenticated."""
    if len(data) < _FIXED:
        raise LengthError("key slot is cut short")
    if data[:4] != MAGIC:
        raise MagicError("this is no key slot")
    if data[4] != VERSION:
        raise VersionError(f"key slot has format version {data[4]}; this program knows {VERSION}")
    _, _, kdf, cost, r, p, zero, length, created, salt, nonce, public = HEAD.unpack_from(data)
    if len(data) != _FIXED + length:
        raise LengthError("key slot is not as long as it says")
    if blake3(data[:-_CHECKSUM]).digest() != data[-_CHECKSUM:]:
        raise AuthenticationError("key slot is damaged: its checksum does not match")
    try:
        label = data[HEAD.size : HEAD.size + length].decode()
        slot = Slot(Kdf(kdf), cost, r, p, created, salt, nonce, public, label)
    except ValueError:
        raise ContentError("key slot makes no sense") from None
    if zero or created >= _MAX_CREATED or not valid_label(label):
        raise ContentError("key slot makes no sense")
    if slot.kdf is Kdf.KEY_FILE and (cost, r, p) != (0, 0, 0):
        raise ContentError("key slot asks for scrypt of a key file")
    # Bounds, or a forged slot could ask for any amount of memory and time.
    if slot.kdf is Kdf.SCRYPT and not (MIN_COST <= cost <= MAX_COST and (r, p) == (8, 1)):
        raise ContentError("key slot asks for an unreasonable scrypt cost")
    return slot


def valid_label(label: str) -> bool:
    """At most 255 bytes of UTF-8, no control characters: it is printed before anything vouches for it."""
    try:
        size = len(label.encode())
    except UnicodeEncodeError:
        return False
    return size <= MAX_LABEL and not any(unicodedata.category(char) in ("Cc", "Zl", "Zp") for char in label)


def unwrap(data: bytes, secret: bytes, *, name: str, repository_id: bytes) -> Opened | None:
    """The keys, or None when `secret` is not this slot's. Raises IntegrityError for a slot that opens but was
    not made by a holder of the master key that it holds."""
    slot = parse(data)
    end = HEAD.size + len(slot.label.encode())
    aad = data[:end] + repository_id + name.encode()
    try:
        plain = aead.provider.decrypt(
            _wrapping_key(slot, secret), slot.nonce, data[end : end + _WRAPPED], aad
        )
    except AuthenticationError:
        return None
    opened = Opened(plain[:32], plain[32:])
    authenticate(data, opened.master, name=name, repository_id=repository_id)
    return opened


def authenticate(data: bytes, master: bytes, *, name: str, repository_id: bytes) -> None:
    """Raises AuthenticationError unless a holder of the master key wrote this slot, as `name`."""
    body, found = data[: -_MAC - _CHECKSUM], data[-_MAC - _CHECKSUM : -_CHECKSUM]
    if not hmac.compare_digest(_mac(body, master, name, repository_id), found):
        raise AuthenticationError("key slot was not made by a holder of this repository's keys; remove it")


def _mac(body: bytes, master: bytes, name: str, repository_id: bytes) -> bytes:
    key = derive_keys(master, repository_id).slot
    return blake3(body + repository_id + name.encode(), key=key).digest()


def _wrapping_key(slot: Slot, secret: bytes) -> bytes:
    if slot.kdf is Kdf.SCRYPT:
        memory = 128 * slot.r * (1 << slot.cost) + (1 << 20)
        return hashlib.scrypt(
            secret, salt=slot.salt, n=1 << slot.cost, r=slot.r, p=slot.p, dklen=32, maxmem=memory
        )
    return blake3(secret, key=blake3(slot.salt, derive_key_context="vmfs v1 key file").digest()).digest()
