"""Bytes to and from an NBD server: whole or not at all, and never for ever."""

from __future__ import annotations

import os
import socket
import struct

from ingest.nbd.address import Address
from ingest.nbd.errors import Disconnected


class Stream:
    """A connected socket. `timeout` (seconds) bounds the wait for any progress. Raises Disconnected."""

    def __init__(self, sock: socket.socket, timeout: float) -> None:
        self._socket = sock
        self.set_timeout(timeout)

    @classmethod
    def connect(cls, address: Address, timeout: float) -> Stream:
        """Raises Disconnected when nobody listens there."""
        try:
            if address.path is not None:
                return cls(_connect_unix(address.path, timeout), timeout)
            sock = socket.create_connection((address.host, address.port), timeout)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            return cls(sock, timeout)
        except TimeoutError:
            raise Disconnected(f"no answer within {timeout:g} seconds") from None
        except (OSError, ValueError) as error:  # ValueError: a host name that cannot be encoded
            raise Disconnected(f"cannot connect: {_reason(error)}") from None

    def set_timeout(self, timeout: float) -> None:
        """The socket stays blocking and the kernel keeps the time: a Python timeout would poll before each
        receive and defeat MSG_WAITALL, which fills megabytes in one call."""
        self.timeout = timeout
        self._socket.settimeout(None)
        limit = struct.pack("@ll", int(timeout), int(timeout % 1 * 1_000_000))
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, limit)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, limit)

    def send(self, data: bytes) -> None:
        try:
            self._socket.sendall(data)
        except OSError as error:
            raise self._lost(error) from None

    def receive(self, length: int) -> bytes:
        """Exactly `length` bytes. The caller has checked that it is a sane amount."""
        buffer = bytearray(length)
        self.receive_into(memoryview(buffer))
        return bytes(buffer)

    def receive_into(self, buffer: memoryview) -> None:
        """Fills the whole buffer."""
        done = 0
        while done < len(buffer):
            try:
                count = self._socket.recv_into(buffer[done:], 0, socket.MSG_WAITALL)
            except OSError as error:
                raise self._lost(error) from None
            if not count:
                raise Disconnected("the server closed the connection")
            done += count

    def close(self) -> None:
        self._socket.close()

    def _lost(self, error: OSError) -> Disconnected:
        if isinstance(error, BlockingIOError):
            return Disconnected(f"the server did not answer within {self.timeout:g} seconds")
        return Disconnected(f"the connection to the server broke: {_reason(error)}")


def _connect_unix(path: str, timeout: float) -> socket.socket:
    """A path longer than an address can hold (108 bytes) is reached through its descriptor, which also
    works when the socket has been unlinked."""
    sock = socket.socket(socket.AF_UNIX)
    try:
        sock.settimeout(timeout)
        if len(os.fsencode(path)) < 108:
            sock.connect(path)
            return sock
        fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
        try:
            sock.connect(f"/proc/self/fd/{fd}")
        finally:
            os.close(fd)
        return sock
    except BaseException:
        sock.close()
        raise


def _reason(error: OSError | ValueError) -> str:
    return (error.strerror if isinstance(error, OSError) else None) or str(error)
