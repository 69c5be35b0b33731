"""A blob: a clear header, then AES-256-GCM ciphertext and tag.

    offset size
         0    4  magic "VMFB"
         4    1  version
         5    1  kind       1 data, 2 node, 3 artifact
         6    1  codec      0 raw, 1 lz4 block
         7    1  zero
         8    8  epoch id   zero for nodes and artifacts
        16   32  blob id
        48    4  plain length
        52    4  stored length   of the ciphertext, without the tag
        56   12  nonce
        68    …  ciphertext, then the 16-byte tag

The header and the repository id are the associated data, so a blob can be moved to another pack but not be
passed off as another. The key comes from (epoch root, kind, id): authentication binds the id. Data blobs have
an epoch other than zero, nodes and artifacts epoch zero.
"""

from __future__ import annotations

import struct
from enum import IntEnum
from typing import NamedTuple

import lz4.block

from vmfs.format import VERSION, aead, lz4block
from vmfs.format.aead import Buffer
from vmfs.format.errors import AuthenticationError, ContentError, LengthError, MagicError, VersionError
from vmfs.format.keys import METADATA_EPOCH, Epoch, Kind, blob_key

MAGIC = b"VMFB"
HEADER = struct.Struct("<4sBBBB8s32sII12s")
OVERHEAD = HEADER.size + aead.TAG_SIZE
MAX_PLAIN = 4 << 20
"""Bytes. Chunks are at most this, and so is every blob: it bounds what a reader must ever allocate."""


class Codec(IntEnum):
    RAW = 0
    LZ4 = 1


class Header(NamedTuple):
    """As read, not authenticated: `kind` and `codec` may be numbers that mean nothing."""

    kind: int
    codec: int
    reserved: int
    epoch: bytes
    id: bytes
    plain_length: int
    stored_length: int
    nonce: bytes


def compress(plain: Buffer) -> tuple[Codec, Buffer]:
    """What does not shrink by a sixteenth is not worth the reader's time and stays raw."""
    packed: bytes = lz4.block.compress(plain, store_size=False)
    if len(packed) > len(plain) - len(plain) // 16:
        return Codec.RAW, plain
    return Codec.LZ4, packed


class Body(NamedTuple):
    """What a blob will hold, compressed or not. `length` is that of the whole blob, bytes."""

    codec: Codec
    plain_length: int
    stored: Buffer

    @property
    def length(self) -> int:
        return OVERHEAD + len(self.stored)


def make_body(plain: Buffer) -> Body:
    """`plain` is 1 byte to 4 MiB; it must stay as it is until the blob is sealed."""
    if not 0 < len(plain) <= MAX_PLAIN:
        raise ValueError(f"a blob holds 1 to {MAX_PLAIN} bytes, not {len(plain)}")
    codec, stored = compress(plain)
    return Body(codec, len(plain), stored)


def seal_into(
    out: memoryview,
    kind: Kind,
    blob_id: bytes,
    body: Body,
    *,
    epoch: Epoch,
    nonce: bytes,
    repository_id: bytes,
) -> None:
    """Write the whole blob to `out`, which is exactly `body.length` long."""
    header = HEADER.pack(
        *(MAGIC, VERSION, kind, body.codec, 0, epoch.id, blob_id),
        *(body.plain_length, len(body.stored), nonce),
    )
    out[: HEADER.size] = header
    key = blob_key(epoch, kind, blob_id)
    aead.provider.encrypt_into(key, nonce, body.stored, header + repository_id, out[HEADER.size :])


def seal(
    kind: Kind, blob_id: bytes, plain: Buffer, *, epoch: Epoch, nonce: bytes, repository_id: bytes
) -> bytes:
    """The whole blob."""
    body = make_body(plain)
    out = bytearray(body.length)
    with memoryview(out) as view:
        seal_into(view, kind, blob_id, body, epoch=epoch, nonce=nonce, repository_id=repository_id)
    return bytes(out)


def parse_header(data: Buffer) -> Header:
    """The header at the start of `data`; `data` need not be the whole blob. Not authenticated: `unseal` does
    that, and only then looks at what the header says."""
    if len(data) < HEADER.size:
        raise LengthError("blob is cut short in its header")
    magic, version, kind, codec, reserved, epoch, blob_id, plain, stored, nonce = HEADER.unpack_from(data)
    if magic != MAGIC:
        raise MagicError("no blob starts here")
    if version != VERSION:
        raise VersionError(f"blob has format version {version}; this program knows {VERSION}")
    return Header(kind, codec, reserved, epoch, blob_id, plain, stored, nonce)


def unseal(data: Buffer, *, kind: int, blob_id: bytes, epoch: Epoch, repository_id: bytes) -> bytes:
    """The plaintext of the blob that `data` is, checked to be the one asked for."""
    header = _header_of(data, kind, blob_id, epoch)
    view = memoryview(data)
    aad = bytes(view[: HEADER.size]) + repository_id
    key = blob_key(epoch, kind, blob_id)
    stored = aead.provider.decrypt(key, header.nonce, view[HEADER.size :], aad)
    _check_content(header)
    if header.codec == Codec.RAW:
        plain = stored
    else:
        try:
            plain = lz4.block.decompress(stored, uncompressed_size=header.plain_length)
        except lz4.block.LZ4BlockError:
            raise ContentError("blob does not decompress to the length it states") from None
    if len(plain) != header.plain_length:
        raise ContentError("blob does not decompress to the length it states")
    return plain


def unseal_start(
    data: memoryview,
    out: memoryview,
    spare: memoryview,
    *,
    kind: int,
    blob_id: bytes,
    epoch: Epoch,
    repository_id: bytes,
) -> int:
    """Fill `out` with the start of the plaintext of the blob that `data` is, checked as `unseal` does, and
    give the length of all of it, bytes. `spare` is memory for what lies between, as long as the largest
    plaintext; after an error nothing that it and `out` hold is to be trusted. Raises IntegrityError, also
    when the plaintext is shorter than `out`."""
    header = _header_of(data, kind, blob_id, epoch)
    if header.stored_length > len(spare):
        raise ContentError("blob header makes no sense: its lengths lie")
    raw = header.codec == Codec.RAW
    stored = out if raw and header.stored_length == len(out) else spare[: header.stored_length]
    aad = bytes(data[: HEADER.size]) + repository_id
    key = blob_key(epoch, kind, blob_id)
    aead.provider.decrypt_into(key, header.nonce, data[HEADER.size :], aad, stored)
    _check_content(header)
    if header.plain_length < len(out) or (raw and header.stored_length != header.plain_length):
        raise ContentError("blob does not decompress to the length it states")
    if not raw:
        lz4block.decompress(stored, header.plain_length, out)
    elif stored is not out:
        out[:] = stored[: len(out)]
    return header.plain_length


def _header_of(data: Buffer, kind: int, blob_id: bytes, epoch: Epoch) -> Header:
    """Checked to be of the blob that was asked for."""
    header = parse_header(data)
    if len(data) != OVERHEAD + header.stored_length:
        raise LengthError("blob is not as long as its header says")
    if (header.kind, header.id, header.epoch) != (kind, blob_id, epoch.id):
        raise AuthenticationError("another blob lies in this one's place")
    return header


def _check_content(header: Header) -> None:
    """Bounds what decompression may allocate."""
    if not 0 < header.plain_length <= MAX_PLAIN or header.stored_length > header.plain_length:
        raise ContentError("blob header makes no sense: its lengths lie")
    if header.codec not in (Codec.RAW, Codec.LZ4) or header.reserved:
        raise ContentError("blob header names a codec that this program does not know")
    if header.kind not in (Kind.DATA, Kind.NODE, Kind.ARTIFACT):
        raise ContentError("blob header names a kind that this program does not know")
    if (header.kind == Kind.DATA) == (header.epoch == METADATA_EPOCH):
        raise ContentError("blob is of an epoch that its kind cannot have")
