"""A small NBD client: the virtual disk controller of the simulated guest.

Of the protocol (https://github.com/NetworkBlockDevice/nbd/blob/master/doc/proto.md) only what a guest needs:
one request at a time, simple replies. Each write is FUA: when it returns, qemu has written its tables as
well, so that a guest's write survives a kill of qemu, and it is known what the disk holds then.
"""

from __future__ import annotations

import os
import socket
import struct
from pathlib import Path

from lab.errors import MachineError

NBDMAGIC = 0x4E42444D41474943
IHAVEOPT = 0x49484156454F5054
REPLY_MAGIC = 0x3E889045565A9
REQUEST_MAGIC = 0x25609513
SIMPLE_REPLY_MAGIC = 0x67446698
FIXED_NEWSTYLE_NO_ZEROES = 3
OPT_EXPORT_NAME = 1

READ, WRITE, TRIM, WRITE_ZEROES = 0, 1, 4, 6
FUA = 1 << 0
MAX_DATA = 32 << 20
"""qemu's largest payload, bytes."""
MAX_RANGE = 1 << 30
"""A request without a payload has a 32-bit length; this many bytes are asked at once."""
TIMEOUT = 120.0


class NbdDisk:
    """A connection to one export. Not thread-safe. Offsets and lengths in bytes; raises MachineError."""

    def __init__(self, path: Path, export: str) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.settimeout(TIMEOUT)
        self.export = export
        self.lost = False
        """The connection broke: what became of the last request is not known."""
        try:
            self._socket.connect(os.fspath(path))
            self.size = self._handshake(export.encode())
        except (OSError, MachineError) as error:
            self._socket.close()
            raise MachineError(f"{export}: cannot connect to the disk: {error}") from None

    def write(self, offset: int, data: bytes | memoryview) -> None:
        view = memoryview(data)
        for start in range(0, len(view), MAX_DATA):
            part = view[start : start + MAX_DATA]
            self._request(WRITE, offset + start, len(part), part)

    def zero(self, offset: int, length: int) -> None:
        self._ranges(WRITE_ZEROES, offset, length)

    def discard(self, offset: int, length: int) -> None:
        self._ranges(TRIM, offset, length)

    def read(self, offset: int, length: int) -> bytes:
        data = bytearray(length)
        view = memoryview(data)
        for start in range(0, length, MAX_DATA):
            part = view[start : start + MAX_DATA]
            self._request(READ, offset + start, len(part))
            try:
                self._receive_into(part)
            except OSError as problem:
                self.lost = True
                raise MachineError(f"{self.export}: the disk is gone: {problem}") from None
        return bytes(data)

    def close(self) -> None:
        self._socket.close()

    def _ranges(self, command: int, offset: int, length: int) -> None:
        for start in range(0, length, MAX_RANGE):
            self._request(command, offset + start, min(MAX_RANGE, length - start))

    def _request(self, command: int, offset: int, length: int, payload: memoryview | None = None) -> None:
        flags = 0 if command == READ else FUA
        try:
            header = struct.pack(">IHHQQI", REQUEST_MAGIC, flags, command, 0, offset, length)
            self._socket.sendall(header)
            if payload is not None:
                self._socket.sendall(payload)
            magic, error, _ = struct.unpack(">IIQ", self._receive(16))
        except OSError as problem:
            self.lost = True
            raise MachineError(f"{self.export}: the disk is gone: {problem}") from None
        if magic != SIMPLE_REPLY_MAGIC:
            raise MachineError(f"{self.export}: not an NBD reply: {magic:#x}")
        if error:
            raise MachineError(
                f"{self.export}: {length} bytes at {offset}: {os.strerror(error)} (the disk has {self.size})"
            )

    def _handshake(self, name: bytes) -> int:
        magic, option, flags = struct.unpack(">QQH", self._receive(18))
        if magic != NBDMAGIC or option != IHAVEOPT or ~flags & FIXED_NEWSTYLE_NO_ZEROES:
            raise MachineError("not an NBD server of the kind that qemu has")
        # EXPORT_NAME needs no reply when there is such an export; the server hangs up when there is none
        self._socket.sendall(struct.pack(">I", FIXED_NEWSTYLE_NO_ZEROES))
        self._socket.sendall(struct.pack(">QII", IHAVEOPT, OPT_EXPORT_NAME, len(name)) + name)
        size, _ = struct.unpack(">QH", self._receive(10))
        return int(size)

    def _receive(self, length: int) -> bytes:
        data = bytearray(length)
        self._receive_into(memoryview(data))
        return bytes(data)

    def _receive_into(self, view: memoryview) -> None:
        while view:
            count = self._socket.recv_into(view)
            if not count:
                self.lost = True
                raise MachineError(f"{self.export}: the disk is gone")
            view = view[count:]
