"""A small NBD client: what a backup needs of the protocol, and no more.

The `ovirt_imageio` package has an NBD client too. It was not taken because it is private to that package,
chooses the dirty bitmap itself (and gives up when a server exports two), keeps one request in flight, and
does not check that what a server sends lies inside what was asked for: a reply may leave a part of the
caller's buffer unfilled without an error. A backup reads from servers that it does not trust.

Fixed newstyle handshake, structured replies, meta contexts, several READ and BLOCK_STATUS requests in
flight. No TLS, no old-style servers, no writes.
"""

from ingest.nbd.address import Address, is_nbd_uri
from ingest.nbd.connection import Connection
from ingest.nbd.errors import CommandError, Disconnected, NbdError, ProtocolError, ServerRefused

__all__ = [
    "Address",
    "CommandError",
    "Connection",
    "Disconnected",
    "NbdError",
    "ProtocolError",
    "ServerRefused",
    "is_nbd_uri",
]
