"""What lies inside a disk image: partitions. Pure parsing over a read function; no devices, no kernel."""

from vmfs.volumes.table import ReadAt, Scheme, Table, Volume, parse

__all__ = ["ReadAt", "Scheme", "Table", "Volume", "parse"]
