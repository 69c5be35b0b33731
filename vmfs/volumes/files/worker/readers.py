# SPDX-License-Identifier: MIT
"""Which reader reads which type of file system (named as blkid names it)."""

from __future__ import annotations

import errno
from collections.abc import Callable
from importlib import import_module
from typing import cast

from .model import Device, Reader, ReaderError

Open = Callable[[Device], Reader]

READERS: dict[str, tuple[str, str]] = {
    "ext2": ("ext.reader", "ExtReader"),
    "ext3": ("ext.reader", "ExtReader"),
    "ext4": ("ext.reader", "ExtReader"),
    "ntfs": ("ntfs", "NtfsReader"),
    "vfat": ("fat", "FatReader"),
    "exfat": ("exfat", "ExfatReader"),
    "iso9660": ("iso", "IsoReader"),
    "xfs": ("xfs", "XfsReader"),
    "btrfs": ("btrfs", "BtrfsReader"),
}
"""Type -> module and class. The class is called with the Device."""


def load(type_: str) -> Open:
    """Imports what reads the type: to be done before the worker is confined, for nothing can be imported
    then. Raises ReaderError for a type that no reader knows and for a library that is missing."""
    if type_ not in READERS:
        raise ReaderError(errno.EOPNOTSUPP, f"file systems of type {type_} cannot be read; use its raw file")
    module, name = READERS[type_]
    try:
        return cast(Open, getattr(import_module(f".{module}", __package__), name))
    except ImportError as error:
        raise ReaderError(errno.EOPNOTSUPP, f"what reads {type_} is not installed: {error}") from error
