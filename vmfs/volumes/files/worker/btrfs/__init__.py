# SPDX-License-Identifier: MIT
"""Reads Btrfs that lies on one device. Source of the format: "On-disk Format" of the Btrfs documentation
(btrfs.readthedocs.io)."""

from .reader import BtrfsReader

__all__ = ["BtrfsReader"]
