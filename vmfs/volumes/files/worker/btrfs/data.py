# SPDX-License-Identifier: MIT
"""The bytes of extents: found, held to their checksums, expanded."""

from __future__ import annotations

from errno import EIO

from ..cache import Cache
from ..model import Device, ReaderError
from .chunks import ChunkMap
from .compression import NONE, expand
from .inode import Extent
from .superblock import Superblock
from .tree import Root, Trees

SUMS = (1 << 64) - 10
"""The object of all checksums of data; the offset of their keys is a logical address."""
EXTENT_CSUM = 128
EXPANDED = 64
"""Compressed extents that are kept expanded, of 128 KiB at most."""


class Data:
    """Reads data of any file."""

    def __init__(
        self, device: Device, superblock: Superblock, chunks: ChunkMap, trees: Trees, sums: Root | None
    ) -> None:
        """`sums` is the tree of checksums, when there is one."""
        self._device = device
        self._chunks = chunks
        self._trees = trees
        self._sums = sums
        self._sector = superblock.sector_size
        self._checksum = superblock.checksum
        self._checksum_size = len(superblock.checksum(b""))
        self._expanded: Cache[int, bytes] = Cache(EXPANDED)

    def of(self, extent: Extent, skip: int, count: int) -> bytes:
        """`count` bytes of an extent that is no hole, `skip` bytes into it. Raises ReaderError."""
        if extent.inline is not None:
            data = extent.inline
            if extent.compression != NONE:
                data = expand(extent.compression, data, extent.expanded, self._sector)
            return data[skip : skip + count].ljust(count, b"\0")
        skip += extent.skip
        if extent.compression == NONE:
            first = extent.address + skip
            start = first - first % self._sector
            end = -(-(first + count) // self._sector) * self._sector
            data = self._stored(start, end - start)
            return data if len(data) == count else data[first - start : first - start + count]
        data = self._expanded.get(extent.address) or b""
        if len(data) < extent.expanded:
            # Compressed, an extent is never larger than it expands to.
            if extent.stored > extent.expanded + self._sector:
                raise ReaderError(EIO, "a compressed extent has impossible sizes")
            stored = self._stored(extent.address, extent.stored)
            data = expand(extent.compression, stored, extent.expanded, self._sector)
            self._expanded.put(extent.address, data)
        return data[skip : skip + count].ljust(count, b"\0")

    def _stored(self, address: int, length: int) -> bytes:
        """Whole sectors from a logical address on, of the first copy that can be read and whose checksums
        hold."""
        pieces = []
        while length:
            copies, count = self._chunks.places(address, length)
            wanted = self._wanted(address, count)
            problem: Exception = ReaderError(
                EIO, f"the checksum of data at the Btrfs address {address} is wrong"
            )
            for place in copies:
                try:
                    data = self._device.read(place, count)
                except OSError as error:
                    problem = error
                    continue
                if len(data) == count and self._holds(data, address, wanted):
                    break
            else:
                raise problem
            pieces.append(data)
            address += count
            length -= count
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def _wanted(self, address: int, length: int) -> list[tuple[int, bytes]]:
        """The checksums of sectors from a logical address on, in runs, with the address where each begins.
        Files without checksums have none."""
        if self._sums is None:
            return []
        first, last = (SUMS, EXTENT_CSUM, 0), (SUMS, EXTENT_CSUM, address)
        before = self._trees.last(self._sums, first, last)
        start = before[0] if before else last
        end = (SUMS, EXTENT_CSUM, address + length - 1)
        runs = []
        for (_, _, begin), sums in self._trees.items(self._sums, start, end):
            skip = max(0, address - begin) // self._sector
            begin += skip * self._sector
            sectors = (address + length - begin) // self._sector
            sums = sums[skip * self._checksum_size : (skip + sectors) * self._checksum_size]
            if sums:
                runs.append((begin, sums))
        return runs

    def _holds(self, data: bytes, address: int, wanted: list[tuple[int, bytes]]) -> bool:
        sector, checksum = self._sector, self._checksum
        for begin, sums in wanted:
            start = begin - address
            end = start + len(sums) // self._checksum_size * sector
            found = b"".join([checksum(data[at : at + sector]) for at in range(start, end, sector)])
            if found != sums:
                return False
        return True
