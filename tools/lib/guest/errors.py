"""What can go wrong with the test guest."""

from __future__ import annotations


class GuestError(Exception):
    """The guest could not be made or started, did not end in time, or its script failed."""
