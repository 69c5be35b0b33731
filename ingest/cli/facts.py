"""What the commands that back up tell of a disk."""

from __future__ import annotations

from typing import Any

from vmfs.cli.common import format_size
from vmfs.format.manifest import Disk


def disk_facts(disk: Disk) -> dict[str, Any]:
    """For JSON."""
    return {
        "alias": disk.alias,
        "size": disk.size,
        "allocated": disk.allocated,
        "mode": disk.mode,
        "full_reason": disk.full_reason,
        "checkpoint": disk.checkpoint,
        "bytes_read": disk.bytes_read,
        "bytes_new": disk.bytes_new,
        "bytes_stored": disk.bytes_stored,
    }


def disk_summary(disk: Disk) -> str:
    """In a line."""
    reason = f" ({disk.full_reason})" if disk.full_reason else ""
    return (
        f"{disk.mode}{reason}, {format_size(disk.bytes_read)} read of {format_size(disk.size)}, "
        f"{format_size(disk.bytes_new)} new, {format_size(disk.bytes_stored)} stored"
    )
