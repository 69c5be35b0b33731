"""A node of a disk's map: 256 child ids of 32 bytes, 8 KiB, in order. The zero id is a null child: zeros.

The children of a leaf (level 0) are data chunks, those of a higher node are nodes one level lower. How many
levels there are follows from the disk's size and the chunk size alone.
"""

from __future__ import annotations

from vmfs.format.errors import LengthError

FANOUT = 256
BITS = 8
ID_SIZE = 32
SIZE = FANOUT * ID_SIZE
NULL = bytes(ID_SIZE)
EMPTY = bytes(SIZE)


def chunk_count(size: int, chunk_size: int) -> int:
    """Chunks that a disk of `size` bytes has; the last may reach past its end and is padded with zeros."""
    return -(-size // chunk_size)


def levels(size: int, chunk_size: int) -> int:
    """Levels of the map of a disk of `size` bytes, at least 1: 4 reach 1 PiB at 256 KiB."""
    return max(1, -(-max(chunk_count(size, chunk_size) - 1, 0).bit_length() // BITS))


def check(node: bytes) -> bytes:
    if len(node) != SIZE:
        raise LengthError(f"a node is {SIZE} bytes, not {len(node)}")
    return node


def child(node: bytes | bytearray, slot: int) -> bytes | None:
    value = bytes(node[slot * ID_SIZE : (slot + 1) * ID_SIZE])
    return None if value == NULL else value


def children(node: bytes | bytearray) -> list[bytes | None]:
    return [child(node, slot) for slot in range(FANOUT)]


def count(node: bytes | bytearray) -> int:
    """Children that are not null."""
    if node == EMPTY:
        return 0
    return sum(node[start : start + ID_SIZE] != NULL for start in range(0, SIZE, ID_SIZE))
