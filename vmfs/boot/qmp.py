"""qemu's monitor: a few commands over its Unix socket (QMP, docs/interop/qmp-spec.rst of qemu)."""

from __future__ import annotations

import json
import socket
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from vmfs.errors import VmfsError


class Monitor:
    """Raises VmfsError when qemu is not there, does not answer within `seconds`, or refuses."""

    def __init__(self, path: Path, seconds: float = 10) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            self._socket.settimeout(seconds)
            self._socket.connect(str(path))
            self._file = self._socket.makefile("rb")
            self._line()
            self.run("qmp_capabilities")
        except BaseException as error:
            self._socket.close()
            if isinstance(error, OSError):
                raise VmfsError(f"qemu's monitor: {error.strerror or error}") from None
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()
        self._socket.close()

    def run(self, command: str) -> dict[str, Any]:
        try:
            self._socket.sendall(json.dumps({"execute": command}).encode() + b"\n")
            # Events come in between.
            while not {"return", "error"} & (answer := self._line()).keys():
                pass
        except OSError as error:
            raise VmfsError(f"qemu's monitor: {error.strerror or error}") from None
        if "error" in answer:
            raise VmfsError(f"qemu refused {command}: {answer['error'].get('desc')}")
        value = answer["return"]
        return value if isinstance(value, dict) else {}

    def _line(self) -> dict[str, Any]:
        line = self._file.readline()
        if not line:
            raise VmfsError("qemu is gone")
        answer = json.loads(line)
        return answer if isinstance(answer, dict) else {}
