"""Disks as a user names them on a command line: `[ALIAS=]PATH` or `[ALIAS=]NBD-URI`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import PurePath

from ingest.nbd import Address, is_nbd_uri
from ingest.sources.base import BitmapError, DiskSource
from ingest.sources.file import FileSource
from ingest.sources.nbd import NbdSource
from ingest.sources.qemu import FORMATS, QemuSource, detect_format
from vmfs.errors import UsageError
from vmfs.format.manifest import check_name


@dataclass(frozen=True, slots=True)
class DiskSpec:
    """`alias` names the disk in the repository; `location` is a path or the URI of an NBD export. `format`
    says what a file is when the user said so; None leaves it to the first bytes of the file."""

    alias: str
    location: str
    format: str | None = None


def parse_spec(text: str, *, format: str | None = None) -> DiskSpec:
    """What stands before the first `=` is the alias, unless it has a slash or begins a URI: write
    `./a=b.raw` for a file of that name. With no alias it is the file's name without its last suffix, or the
    export's name.

    Raises UsageError for a name that no disk can have, an address that is not one, an unknown format.
    """
    if format is not None and format not in FORMATS:
        raise UsageError(f"unknown disk format {format!a}; use one of {', '.join(FORMATS)}")
    head, equals, tail = text.partition("=")
    alias, location = (head, tail) if equals and "/" not in head and not is_nbd_uri(text) else (None, text)
    if not location:
        raise UsageError(f"disk {text!a} has no path; write [ALIAS=]PATH or [ALIAS=]NBD-URI")
    address = Address.parse(location) if is_nbd_uri(location) else None
    if address is not None and format not in (None, "raw"):
        raise UsageError(f"disk {location!a} is an NBD export, which is raw; leave out the format")
    if alias is not None:
        return DiskSpec(check_name("disk alias", alias), location, format)
    default = PurePath(location).stem if address is None else address.default_name
    try:
        return DiskSpec(check_name("disk alias", default), location, format)
    except UsageError as error:
        raise UsageError(f"{error}: write ALIAS={location!a}") from None


def open_source(spec: DiskSpec, *, bitmap: str | None = None) -> DiskSource:
    """The disk, checked and ready to be read; with `bitmap` it tells what changed since that dirty bitmap was
    added. Raises SourceError, and BitmapError when there is no such bitmap or it cannot be trusted."""
    name = ascii(spec.location)[1:-1]
    if is_nbd_uri(spec.location):
        return NbdSource(spec.location, bitmap=bitmap, name=name)
    format = spec.format or detect_format(spec.location, name)
    if format != "raw":
        return QemuSource(spec.location, format, guessed=spec.format is None, bitmap=bitmap, name=name)
    source = FileSource(spec.location, name=name)
    if bitmap is None:
        return source
    source.close()
    raise BitmapError(
        f"disk {name} is raw and has no dirty bitmap {bitmap!a}; leave out --bitmap, or back up the NBD "
        "export of a qemu that has the bitmap"
    )
