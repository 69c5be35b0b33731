# SPDX-License-Identifier: MIT
"""The journal (jbd2), replayed in memory: the volume as it is after recovery, without being written to.

After the kernel's fs/jbd2/recovery.c: which transactions are complete, which blocks they revoke, which they
hold. Numbers are big-endian.
"""

from __future__ import annotations

import errno
import struct
import zlib
from bisect import bisect_left
from collections.abc import Iterator
from typing import NamedTuple

import google_crc32c

from ..model import Device, ReaderError
from .blocks import BlockMap
from .superblock import Superblock

_MAGIC = 0xC03B3998
_HEADER = struct.Struct(">III")
_DESCRIPTOR, _COMMIT, _REVOKE = 1, 2, 5
_SUPERBLOCKS = (3, 4)
_COMPAT_CHECKSUM = 0x1
_INCOMPAT_REVOKE = 0x1
_INCOMPAT_64BIT = 0x2
_INCOMPAT_ASYNC_COMMIT = 0x4
_INCOMPAT_CSUM_V2 = 0x8
_INCOMPAT_CSUM_V3 = 0x10
_INCOMPAT_FAST_COMMIT = 0x20
_INCOMPAT_KNOWN = 0x3F
_DEFAULT_FAST_COMMIT_BLOCKS = 256
_TAG_ESCAPED = 1
_TAG_SAME_UUID = 2
_TAG_LAST = 8
_COMMIT_CHECKSUM = 16
"""Byte of the checksum in a commit block."""
_CRC32 = (1, 4)
"""Kind and size of a checksum over a whole transaction, as a commit block has them."""
_BITS_REVERSED = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))


class Overlay:
    """A `model.Device` that reads the journal's blocks in place of those they are for."""

    def __init__(
        self, device: Device, block_size: int, blocks: dict[int, tuple[int, bool]], notes: tuple[str, ...]
    ) -> None:
        self.size = device.size
        self.notes = notes
        """For a person."""
        self._device = device
        self._block_size = block_size
        self._blocks = blocks
        """Block -> where its content lies, in bytes of the volume, and whether it begins with the magic
        number, which the journal holds as zeros."""
        self._numbers = sorted(blocks)

    def replaces(self, offset: int, length: int) -> bool:
        """Whether any of these bytes is not what the volume holds there."""
        size = self._block_size
        at = bisect_left(self._numbers, offset // size)
        return at < len(self._numbers) and self._numbers[at] * size < offset + length

    def read(self, offset: int, length: int) -> bytes:
        length = min(length, self.size - offset)
        if length <= 0:
            return b""
        size = self._block_size
        first, last = offset // size, (offset + length - 1) // size
        ours = [number for number in range(first, last + 1) if number in self._blocks]
        if not ours:
            return self._device.read(offset, length)
        if first == last:
            return self._content(first)[offset - first * size : offset - first * size + length]
        data = bytearray(self._device.read(offset, length))
        for number in ours:
            start = max(number * size, offset)
            stop = min((number + 1) * size, offset + length)
            content = self._content(number)
            data[start - offset : stop - offset] = content[start - number * size : stop - number * size]
        return bytes(data)

    def _content(self, number: int) -> bytes:
        place, escaped = self._blocks[number]
        data = self._device.read(place, self._block_size)
        return struct.pack(">I", _MAGIC) + data[4:] if escaped else data


class _Tag(NamedTuple):
    """Block `number` of the volume is the journal's block `at`."""

    number: int
    at: int
    escaped: bool
    checksum: int


class _Transaction(NamedTuple):
    sequence: int
    tags: list[_Tag]
    revoked: list[int]


def replay(device: Device, superblock: Superblock, journal: BlockMap) -> Overlay:
    """Raises ReaderError for a journal that makes no sense, or holds what is not known here."""
    log = _Journal(device, superblock, journal)
    transactions = list(log.transactions())
    revoked: dict[int, int] = {}
    for transaction in transactions:
        for number in transaction.revoked:
            revoked[number] = transaction.sequence
    blocks: dict[int, tuple[int, bool]] = {}
    damaged = 0
    for transaction in transactions:
        for tag in transaction.tags:
            if revoked.get(tag.number, -1) >= transaction.sequence:
                continue
            if not log.is_sound(tag, transaction.sequence):
                damaged += 1
                continue
            blocks[tag.number] = (log.place(tag.at), tag.escaped)
    notes = []
    if transactions:
        notes.append(
            f"the journal was dirty: {len(transactions)} transactions with {len(blocks)} blocks "
            "were replayed in memory"
        )
    if damaged:
        notes.append(f"{damaged} blocks in the journal are damaged: the content of before is shown there")
    if log.is_cut_short:
        notes.append("a transaction in the journal is damaged: the content is of before it")
    if log.has_fast_commits(transactions):
        notes.append("the journal holds fast commits, which are not replayed: seconds may be missing")
    return Overlay(device, superblock.block_size, blocks, tuple(notes))


class _Journal:
    def __init__(self, device: Device, superblock: Superblock, journal: BlockMap) -> None:
        self._device = device
        self._size = superblock.block_size
        self._blocks_of_volume = superblock.blocks
        self._map = journal
        head = self._block(0)
        magic, kind, _ = _HEADER.unpack_from(head)
        if magic != _MAGIC or kind not in _SUPERBLOCKS:
            raise _error("there is no superblock of a journal")
        size, length, self._first, self._sequence, self._start = struct.unpack_from(">IIIII", head, 12)
        self._incompat = struct.unpack_from(">I", head, 40)[0] if kind == _SUPERBLOCKS[1] else 0
        if self._incompat & ~_INCOMPAT_KNOWN:
            raise _error(f"it has features that are not known here ({self._incompat & ~_INCOMPAT_KNOWN:#x})")
        compat = struct.unpack_from(">I", head, 36)[0] if kind == _SUPERBLOCKS[1] else 0
        self._summed = bool(compat & _COMPAT_CHECKSUM)
        """Whether commits have the checksum of their whole transaction (mount option journal_checksum)."""
        self._seed = _crc32c(head[48:64])
        self._checked = bool(self._incompat & (_INCOMPAT_CSUM_V2 | _INCOMPAT_CSUM_V3))
        self.is_cut_short = False
        """Whether `transactions` has come to one that is damaged. The kernel refuses to mount it."""
        self._end = length
        """Where it wraps."""
        if self._incompat & _INCOMPAT_FAST_COMMIT:
            self._end -= struct.unpack_from(">I", head, 0x54)[0] or _DEFAULT_FAST_COMMIT_BLOCKS
        known = max((run.logical + run.blocks for run in journal.runs), default=0)
        if size != self._size or not 0 < self._first < self._end <= length <= known:
            raise _error("its superblock makes no sense")
        if self._start and not self._first <= self._start < self._end:
            raise _error("its superblock makes no sense")

    def transactions(self) -> Iterator[_Transaction]:
        """Those that are complete, from the oldest on."""
        if not self._start:
            return
        sequence, at, left = self._sequence, self._start, self._end - self._first
        tags: list[_Tag] = []
        revoked: list[int] = []
        # Blocks that the checksum of the transaction is over.
        summed: list[int] = []
        while left > 0:
            block = self._block(at)
            magic, kind, its_sequence = _HEADER.unpack_from(block)
            if magic != _MAGIC or its_sequence != sequence:
                return
            if kind == _DESCRIPTOR:
                summed.append(at)
            at, left = self._next(at), left - 1
            if kind == _DESCRIPTOR:
                if not self._has_good_tail(block):
                    self.is_cut_short = True
                    return
                for number, flags, checksum in self._tags(block):
                    tags.append(_Tag(number, at, bool(flags & _TAG_ESCAPED), checksum))
                    summed.append(at)
                    at, left = self._next(at), left - 1
            elif kind == _REVOKE:
                # The kernel takes no revocations from such a block, and goes on.
                if self._has_good_tail(block):
                    revoked.extend(self._revocations(block))
            elif kind == _COMMIT:
                if not self._is_sound_commit(block) or not self._is_whole(block, summed):
                    self.is_cut_short = True
                    return
                yield _Transaction(sequence, tags, revoked)
                tags, revoked, summed = [], [], []
                sequence = (sequence + 1) & 0xFFFFFFFF
            else:
                return

    def is_sound(self, tag: _Tag, sequence: int) -> bool:
        if not 0 <= tag.number < self._blocks_of_volume:
            return False
        if not self._checked:
            return True
        checksum = _crc32c(self._block(tag.at), _crc32c(struct.pack(">I", sequence), self._seed))
        if self._incompat & _INCOMPAT_CSUM_V3:
            return checksum == tag.checksum
        return checksum & 0xFFFF == tag.checksum

    def has_fast_commits(self, transactions: list[_Transaction]) -> bool:
        """Whether the area of fast commits begins with one of the transaction after the last."""
        if not self._incompat & _INCOMPAT_FAST_COMMIT:
            return False
        # EXT4_FC_TAG_HEAD: tag 9, length 8, features, transaction; little-endian.
        tag, length, _, sequence = struct.unpack_from("<HHII", self._block(self._end + 1))
        following = transactions[-1].sequence + 1 if transactions else self._sequence
        return tag == 9 and length >= 8 and bool(sequence == following)

    def place(self, at: int) -> int:
        """Where block `at` of the journal lies, in bytes of the volume."""
        for run in self._map.within(at, at + 1):
            return run.physical * self._size
        raise _error("it has a hole")

    def _block(self, at: int) -> bytes:
        data = self._device.read(self.place(at), self._size)
        if len(data) < self._size:
            raise _error("it lies outside of the volume")
        return data

    def _next(self, at: int) -> int:
        return at + 1 if at + 1 < self._end else self._first

    def _tags(self, block: bytes) -> Iterator[tuple[int, int, int]]:
        """(block of the volume, flags, checksum)"""
        third = self._incompat & _INCOMPAT_CSUM_V3
        wide = self._incompat & _INCOMPAT_64BIT
        # journal_tag_bytes() of the kernel.
        size = 16 if third else 8 + (4 if wide else 0) + (2 if self._incompat & _INCOMPAT_CSUM_V2 else 0)
        end = len(block) - (4 if self._checked else 0)
        at = _HEADER.size
        while at + size <= end:
            if third:
                number, flags, high, checksum = struct.unpack_from(">IIII", block, at)
            else:
                number, checksum, flags = struct.unpack_from(">IHH", block, at)
                high = struct.unpack_from(">I", block, at + 8)[0] if wide else 0
            if wide:
                number |= high << 32
            yield number, flags, checksum
            at += size
            if not flags & _TAG_SAME_UUID:
                at += 16
            if flags & _TAG_LAST:
                return

    def _revocations(self, block: bytes) -> Iterator[int]:
        (end,) = struct.unpack_from(">I", block, _HEADER.size)
        if end > len(block):
            return
        form = ">Q" if self._incompat & _INCOMPAT_64BIT else ">I"
        width = struct.calcsize(form)
        for at in range(_HEADER.size + 4, end - width + 1, width):
            yield struct.unpack_from(form, block, at)[0]

    def _has_good_tail(self, block: bytes) -> bool:
        """Descriptors and revocations have their checksum in the last four bytes."""
        if not self._checked:
            return True
        (checksum,) = struct.unpack_from(">I", block, len(block) - 4)
        return bool(_crc32c(block[:-4] + bytes(4), self._seed) == checksum)

    def _is_whole(self, commit: bytes, blocks: list[int]) -> bool:
        """With journal_async_commit a commit can be on the disk before what it commits."""
        found = struct.unpack_from(">I", commit, _COMMIT_CHECKSUM)[0]
        form = (commit[12], commit[13])
        if not self._summed or (form == (0, 0) and not found):
            return True
        checksum = 0
        for block in blocks:
            checksum = zlib.crc32(self._block(block).translate(_BITS_REVERSED), checksum)
        # The kernel's crc32_be(): other order of bits, and no inversion at the end.
        reversed_ = (~checksum & 0xFFFFFFFF).to_bytes(4, "little").translate(_BITS_REVERSED)
        return form == _CRC32 and found == int.from_bytes(reversed_, "big")

    def _is_sound_commit(self, block: bytes) -> bool:
        if not self._checked:
            return True
        (checksum,) = struct.unpack_from(">I", block, _COMMIT_CHECKSUM)
        blank = block[:_COMMIT_CHECKSUM] + bytes(4) + block[_COMMIT_CHECKSUM + 4 :]
        return bool(_crc32c(blank, self._seed) == checksum)


def _crc32c(data: bytes, start: int = 0xFFFFFFFF) -> int:
    """As jbd2 has it: from a given start, without the inversion at the end."""
    return ~int(google_crc32c.extend(~start & 0xFFFFFFFF, data)) & 0xFFFFFFFF


def _error(text: str) -> ReaderError:
    return ReaderError(errno.EIO, text)
