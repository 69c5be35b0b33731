"""Partition tables: one function that finds the table of a disk image, and what it returns.

A disk image comes from a guest and may be anything, so nothing in it is believed: every number is checked
against the size of the disk, every walk is bounded, and what is wrong becomes a warning.
"""

from __future__ import annotations

from vmfs.errors import VmfsError
from vmfs.volumes import gpt, mbr
from vmfs.volumes.model import Disk, ReadAt, Scheme, Table, Volume

__all__ = ["ReadAt", "Scheme", "Table", "Volume", "parse"]

BLOCK_SIZES = (512, 4096)


def parse(read: ReadAt, size: int, block_size: int = 512) -> Table:
    """The partition table of a disk of `size` bytes.

    `read(offset, length)` returns the bytes of the disk at `offset`, fewer only at its end. `block_size` is
    the logical block size, bytes; a GPT that was written for the other usual size is found as well.

    Damaged and hostile tables give warnings, never an exception. Raises what `read` raises only when the
    places that tell whether there is a table cannot be read.
    """
    disk = Disk(read, size, block_size if block_size in BLOCK_SIZES else BLOCK_SIZES[0])
    first_error: VmfsError | OSError | None = None
    try:
        boot = mbr.read_boot_record(disk)
    except (VmfsError, OSError) as error:
        first_error, boot = error, None
        disk.warn(f"the first block of the disk cannot be read: {error}")

    # An ordinary MBR wins over a GPT left behind by an earlier use of the disk, as it does for the kernel.
    if boot is None or boot.protective or not boot.entries:
        table = _find_gpt(disk, boot)
        if table is not None:
            return table
        if first_error is not None:
            raise first_error
    if boot is None:
        return disk.table("none", [])
    if boot.protective:
        disk.warn("the disk says that it has a GPT, and neither copy of it is usable")
    volumes = mbr.volumes(disk, boot)
    return disk.table("mbr" if volumes or (boot.entries and not boot.protective) else "none", volumes)


def _find_gpt(disk: Disk, boot: mbr.BootRecord | None) -> Table | None:
    own = disk.block_size
    for block_size in (own, *(other for other in BLOCK_SIZES if other != own)):
        attempt = Disk(disk.read, disk.size, block_size)
        volumes = gpt.volumes(attempt)
        if volumes is None:
            if block_size == own:
                disk.warnings.extend(attempt.warnings)
            continue
        attempt.warnings[:0] = [note for note in disk.warnings if note not in attempt.warnings]
        if block_size != own:
            attempt.warn(f"the GPT is of a disk with {block_size}-byte blocks")
        if boot is None or not boot.protective:
            attempt.warn("the protective MBR is missing")
        elif len(boot.entries) > 1:
            attempt.warn("hybrid MBR: its own partitions are left out, the GPT's are shown")
        return attempt.table("gpt", volumes)
    return None
