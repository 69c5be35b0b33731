"""All routes."""

from __future__ import annotations

from lab.rest import routes_backups, routes_inventory, routes_snapshots, routes_storage, routes_vms
from lab.rest.api import ROUTES

MODULES = (routes_inventory, routes_storage, routes_vms, routes_snapshots, routes_backups)


def load() -> int:
    """They register themselves when they are imported. Gives how many there are."""
    return len(ROUTES)
