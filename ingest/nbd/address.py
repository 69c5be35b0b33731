"""Where an NBD export is, as a user writes it.

Taken are the forms of the NBD URI specification without TLS and those of qemu:

    nbd://HOST[:PORT]/[EXPORT]                nbd:HOST:PORT[:exportname=EXPORT]
    nbd+unix:///[EXPORT]?socket=PATH          nbd:unix:PATH[:exportname=EXPORT]
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import PurePath
from urllib.parse import parse_qs, unquote, urlsplit

from ingest.nbd.wire import MAX_STRING
from vmfs.errors import UsageError

DEFAULT_PORT = 10809

_URI = re.compile(r"nbds?(\+[a-z]+)?://|nbd:", re.ASCII)
_QEMU_UNIX = re.compile(r"nbd:unix:(?P<path>.+?)(?::exportname=(?P<export>.*))?", re.DOTALL)
_QEMU_TCP = re.compile(
    r"nbd:(?P<host>\[[0-9A-Fa-f:.%]+\]|[^:/\[\]]+):(?P<port>[0-9]{1,5})(?::exportname=(?P<export>.*))?",
    re.DOTALL,
)


def is_nbd_uri(text: str) -> bool:
    """Whether the text is meant as the address of an NBD export, well-formed or not."""
    return _URI.match(text) is not None


@dataclass(frozen=True, slots=True)
class Address:
    """An export of a server that listens on `host` and `port`, or on the Unix socket `path`."""

    export: str
    path: str | None = None
    host: str = ""
    port: int = DEFAULT_PORT

    @staticmethod
    def parse(text: str) -> Address:
        """Raises UsageError for anything but the forms above."""
        try:
            address = _parse_uri(text) if "://" in text.partition("?")[0] else _parse_qemu(text)
        except ValueError as error:
            raise UsageError(
                f"{text!a} is not an NBD address ({error}); write nbd://HOST[:PORT]/EXPORT or "
                "nbd+unix:///EXPORT?socket=PATH"
            ) from None
        if "\0" in (address.path or "") or "\0" in address.export:
            raise UsageError(f"{text!a} is not an NBD address: it has a NUL character")
        if len(address.export.encode(errors="surrogateescape")) > MAX_STRING:
            raise UsageError(f"the export name of an NBD address is longer than {MAX_STRING} bytes")
        return address

    @property
    def default_name(self) -> str:
        """What to call the disk when the user does not: the export, else where the server is."""
        return self.export or (PurePath(self.path).stem if self.path is not None else self.host)


def _parse_uri(text: str) -> Address:
    parts = urlsplit(text)
    if parts.scheme in ("nbds", "nbds+unix"):
        raise ValueError("TLS is not supported, forward the server's socket with ssh instead")
    if parts.fragment:
        raise ValueError("it has a fragment, write # as %23")
    export = unquote(parts.path.removeprefix("/"), errors="surrogateescape")
    query = parse_qs(parts.query, keep_blank_values=True, errors="surrogateescape")
    sockets = query.get("socket", [])
    if parts.scheme == "nbd+unix":
        if parts.netloc:
            raise ValueError("a Unix socket has no host, write three slashes")
        if len(sockets) != 1 or not sockets[0]:
            raise ValueError("it needs ?socket=PATH")
        return Address(export=export, path=sockets[0])
    if parts.scheme != "nbd":
        raise ValueError(f"the scheme {parts.scheme} is not supported")
    if sockets:
        raise ValueError("socket= goes with nbd+unix://")
    if not parts.hostname:
        raise ValueError("it has no host")
    return Address(export=export, host=parts.hostname, port=parts.port or DEFAULT_PORT)


def _parse_qemu(text: str) -> Address:
    if match := _QEMU_UNIX.fullmatch(text):
        return Address(export=match["export"] or "", path=match["path"])
    if match := _QEMU_TCP.fullmatch(text):
        port = int(match["port"])
        if not 0 < port < 1 << 16:
            raise ValueError("the port is out of range")
        return Address(export=match["export"] or "", host=match["host"].strip("[]"), port=port)
    raise ValueError("it is neither a URI nor qemu's nbd:HOST:PORT")
