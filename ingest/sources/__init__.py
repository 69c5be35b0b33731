"""Where a disk's bytes come from: one module a transport, each giving a `DiskSource`."""

from ingest.sources.base import BitmapError, DiskSource, Extent, SourceError, SourceReader
from ingest.sources.spec import DiskSpec, open_source, parse_spec

__all__ = [
    "BitmapError",
    "DiskSource",
    "DiskSpec",
    "Extent",
    "SourceError",
    "SourceReader",
    "open_source",
    "parse_spec",
]
