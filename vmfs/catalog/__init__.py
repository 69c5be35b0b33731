"""What a person asks of a repository: its VMs, their points, their disks. SQL, and disposable.

Every row is copied from a manifest in the store, so the catalog may be deleted at any time; see
`vmfs.catalog.catalog.Catalog`. It holds names, sizes and times in the clear, and no keys.
"""

from vmfs.catalog.catalog import Catalog
from vmfs.catalog.database import sqlite_url
from vmfs.catalog.rows import ArtifactRow, DamagedPoint, DiskRow, PointRow, VmRow

__all__ = ["ArtifactRow", "Catalog", "DamagedPoint", "DiskRow", "PointRow", "VmRow", "sqlite_url"]
