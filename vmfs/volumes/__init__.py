"""What lies inside the disks of a point: partitions (here), and volumes of all kinds (layout.py). Pure
parsing over read functions; no devices, no kernel."""

from vmfs.volumes.table import ReadAt, Scheme, Table, Volume, parse

__all__ = ["ReadAt", "Scheme", "Table", "Volume", "parse"]
