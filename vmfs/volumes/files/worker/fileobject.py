# SPDX-License-Identifier: MIT
"""A device as the file-like object that libraries want."""

from __future__ import annotations

import io
import os

from .model import Device


class DeviceFile(io.RawIOBase):
    def __init__(self, device: Device) -> None:
        super().__init__()
        self._device = device
        self._at = 0

    def seekable(self) -> bool:
        return True

    def readable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._device.size}[whence]
        self._at = max(base + offset, 0)
        return self._at

    def tell(self) -> int:
        return self._at

    def read(self, size: int = -1) -> bytes:
        data = self._device.read(self._at, self._device.size - self._at if size < 0 else size)
        self._at += len(data)
        return data

    def get_size(self) -> int:
        """For libyal."""
        return self._device.size
