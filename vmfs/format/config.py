"""The config object: what must be known before anything else of a repository can be read.

    offset size
         0    4  magic "VMFC"
         4    1  format version
         5    1  hash      1 = BLAKE3-256
         6    1  AEAD      1 = AES-256-GCM
         7    1  zero
         8   16  repository id
        24    4  chunk size, bytes
        28    4  zero
        32   32  MAC: keyed BLAKE3 of the above
        64   32  checksum: plain BLAKE3 of the above

The checksum tells damage from a wrong passphrase, for the MAC needs the key, and the key needs the id.
"""

from __future__ import annotations

import hmac
import struct
from typing import NamedTuple

from blake3 import blake3

from vmfs.format import VERSION
from vmfs.format.errors import AuthenticationError, ContentError, LengthError, MagicError, VersionError

MAGIC = b"VMFC"
BODY = struct.Struct("<4sBBBB16sII")
SIZE = BODY.size + 64
REPOSITORY_ID_SIZE = 16
MIN_CHUNK = 64 << 10
MAX_CHUNK = 4 << 20
BLAKE3_256 = 1
AES_256_GCM = 1


class Config(NamedTuple):
    repository_id: bytes
    chunk_size: int


def valid_chunk_size(size: int) -> bool:
    """A power of two from 64 KiB to 4 MiB."""
    return MIN_CHUNK <= size <= MAX_CHUNK and size & (size - 1) == 0


def encode(config: Config, mac_key: bytes) -> bytes:
    body = BODY.pack(MAGIC, VERSION, BLAKE3_256, AES_256_GCM, 0, config.repository_id, config.chunk_size, 0)
    body += blake3(body, key=mac_key).digest()
    return body + blake3(body).digest()


def decode(data: bytes) -> Config:
    """Checked against damage; `authenticate` it once the key is known."""
    if len(data) < 8:
        raise LengthError("config is cut short")
    if data[:4] != MAGIC:
        raise MagicError("config is damaged, or this is no vmfs repository")
    # Or a damaged version byte would pass for a later version.
    if data[4] > VERSION and blake3(data[:-32]).digest() == data[-32:]:
        raise VersionError(
            f"the repository has format version {data[4]}; this program knows {VERSION}: use a later vmfs"
        )
    if len(data) != SIZE:
        raise LengthError("config is damaged: wrong length")
    if blake3(data[:-32]).digest() != data[-32:]:
        raise AuthenticationError("config is damaged: its checksum does not match")
    _, version, digest, cipher, zero1, repository_id, chunk_size, zero2 = BODY.unpack_from(data)
    if version != VERSION or (digest, cipher) != (BLAKE3_256, AES_256_GCM) or zero1 or zero2:
        raise ContentError("config names algorithms that this program does not know")
    if not valid_chunk_size(chunk_size):
        raise ContentError("config states an impossible chunk size")
    return Config(repository_id, chunk_size)


def authenticate(data: bytes, mac_key: bytes) -> None:
    expected = blake3(data[: BODY.size], key=mac_key).digest()
    if not hmac.compare_digest(expected, data[BODY.size : BODY.size + 32]):
        raise AuthenticationError("config was not written by the holder of this key")
