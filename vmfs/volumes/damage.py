"""Errors of volumes that were made by a guest."""

from __future__ import annotations

from vmfs.errors import IntegrityError


class VolumeDamagedError(IntegrityError):
    """What the guest wrote down about where a volume's bytes lie makes no sense."""


class Unmappable(Exception):
    """Why a volume cannot be put together, in words that follow its name and a colon."""
