# SPDX-License-Identifier: MIT
"""Reads XFS, versions 4 and 5."""

from .reader import XfsReader

__all__ = ["XfsReader"]
