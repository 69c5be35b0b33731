# SPDX-License-Identifier: MIT
"""The superblock of Btrfs and its mirrors."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Callable
from dataclasses import dataclass
from errno import EIO, EOPNOTSUPP
from uuid import UUID

import google_crc32c
import xxhash

from ..model import Device, ReaderError

PLACES = (64 << 10, 64 << 20, 256 << 30)
"""Bytes from the start of the volume."""
SIZE = 4096
CHECKSUM_SIZE = 32
MAGIC = b"_BHRfS_M"
# own place, flags, magic, generation, root tree, chunk tree, log tree
HEAD = struct.Struct("<QQ8sQQQQ")
HEAD_AT = 48
# root directory, devices, sector, node, leaf, stripe, system chunks; chunk generation, compat, compat_ro,
# incompat; checksum, levels of root, chunk and log tree
SIZES = struct.Struct("<QQIIIIIQQQQHBBB")
SIZES_AT = 128
DEVICE_ID_AT = 201
LABEL_AT = 299
LABEL_SIZE = 256
METADATA_UUID_AT = 571
SYSTEM_CHUNKS_AT = 811
SYSTEM_CHUNKS_SIZE = 2048
MAX_LEVEL = 7

# Incompatible features
METADATA_UUID = 0x400
KNOWN = 0x1 | 0x2 | 0x4 | 0x8 | 0x10 | 0x20 | 0x40 | 0x80 | 0x100 | 0x200 | METADATA_UUID | 0x800 | 0x10000
NOT_READ = {0x1000: "zones", 0x2000: "the extent tree of version 2", 0x4000: "the tree of stripes"}
"""They change where things lie."""

Checksum = Callable[[bytes], bytes]


def _crc32c(data: bytes) -> bytes:
    return int(google_crc32c.value(data)).to_bytes(4, "little")


def _xxhash64(data: bytes) -> bytes:
    return xxhash.xxh64_intdigest(data).to_bytes(8, "little")


def _sha256(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()


def _blake2b(data: bytes) -> bytes:
    return hashlib.blake2b(data, digest_size=32).digest()


CHECKSUMS: dict[int, Checksum] = {0: _crc32c, 1: _xxhash64, 2: _sha256, 3: _blake2b}


@dataclass(frozen=True, slots=True)
class Superblock:
    """Places are bytes: logical addresses, but for those of the system chunks."""

    generation: int
    root: int
    root_level: int
    chunk_root: int
    chunk_root_level: int
    chunk_root_generation: int
    log_root: int
    root_directory: int
    devices: int
    device_id: int
    sector_size: int
    node_size: int
    label: str
    uuid: UUID
    metadata_uuid: UUID
    checksum: Checksum
    system_chunks: bytes


def read_superblock(device: Device) -> Superblock:
    """The newest of the mirrors that are sound: the first is damaged as soon as any other. Raises
    ReaderError when there is none, or it needs what this reader does not know."""
    found: list[Superblock] = []
    problems: list[Exception] = []
    for place in PLACES:
        if place + SIZE > device.size:
            break
        try:
            found.append(_parse(device.read(place, SIZE), place))
        except (ReaderError, OSError) as error:
            problems.append(error)
    if not found:
        raise problems[0] if problems else ReaderError(EIO, "the volume is too small for a Btrfs")
    # A mirror that an older file system left behind is none of the first.
    return max((one for one in found if one.uuid == found[0].uuid), key=lambda one: one.generation)


def _parse(raw: bytes, place: int) -> Superblock:
    own, _, magic, generation, root, chunk_root, log_root = HEAD.unpack_from(raw.ljust(SIZE, b"\0"), HEAD_AT)
    if len(raw) < SIZE or magic != MAGIC or own != place:
        raise ReaderError(EIO, f"there is no Btrfs superblock at {place}")
    (
        _,
        _,
        sector_size,
        node_size,
        _,
        _,
        system_size,
        chunk_generation,
        _,
        _,
        incompatible,
        checksum_type,
        root_level,
        chunk_root_level,
        _,
    ) = SIZES.unpack_from(raw, SIZES_AT)
    root_directory, devices = struct.unpack_from("<QQ", raw, SIZES_AT)
    checksum = CHECKSUMS.get(checksum_type)
    if checksum is None:
        raise ReaderError(EOPNOTSUPP, f"the Btrfs uses checksums of the unknown type {checksum_type}")
    digest = checksum(raw[CHECKSUM_SIZE:])
    if raw[: len(digest)] != digest:
        raise ReaderError(EIO, f"the checksum of the Btrfs superblock at {place} is wrong")
    if unknown := incompatible & ~KNOWN:
        names = [name for bit, name in NOT_READ.items() if unknown & bit]
        raise ReaderError(
            EOPNOTSUPP,
            f"the Btrfs uses what is not read here ({', '.join(names) or f'features {unknown:#x}'}); "
            "use its raw file",
        )
    if (
        node_size not in (4096 << power for power in range(5))
        or sector_size not in (512 << power for power in range(8))
        or system_size > SYSTEM_CHUNKS_SIZE
        or max(root_level, chunk_root_level) > MAX_LEVEL
    ):
        raise ReaderError(EIO, "the sizes in the Btrfs superblock are impossible")
    uuid = UUID(bytes=raw[32:48])
    return Superblock(
        generation=generation,
        root=root,
        root_level=root_level,
        chunk_root=chunk_root,
        chunk_root_level=chunk_root_level,
        chunk_root_generation=chunk_generation,
        log_root=log_root,
        root_directory=root_directory,
        devices=devices,
        device_id=int.from_bytes(raw[DEVICE_ID_AT : DEVICE_ID_AT + 8], "little"),
        sector_size=sector_size,
        node_size=node_size,
        label=raw[LABEL_AT : LABEL_AT + LABEL_SIZE].split(b"\0")[0].decode("utf-8", "replace"),
        uuid=uuid,
        metadata_uuid=UUID(bytes=raw[METADATA_UUID_AT : METADATA_UUID_AT + 16])
        if incompatible & METADATA_UUID
        else uuid,
        checksum=checksum,
        system_chunks=raw[SYSTEM_CHUNKS_AT : SYSTEM_CHUNKS_AT + system_size],
    )
