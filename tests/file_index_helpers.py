"""A guest with a root and a home volume, made by mkfs and changed through the kernel's own mounts."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

MIB = 1 << 20
ROOT_UUID = "11111111-2222-4333-8444-555555555555"
HOME_UUID = "66666666-7777-4888-8999-aaaaaaaaaaaa"
ROOT_AT, ROOT_SIZE = MIB, 16 * MIB
HOME_AT, HOME_SIZE = 17 * MIB, 8 * MIB
_LAYOUT = "label: gpt\nstart=1MiB, size=16MiB\nstart=17MiB, size=8MiB\n"


class GuestImage:
    """A GPT disk: partition 1 is the root (ext4, with an fstab), partition 2 is mounted at /home (ext4)."""

    def __init__(self, path: Path, scratch: Path) -> None:
        self.path = path
        self._scratch = scratch
        with path.open("wb") as file:
            file.truncate(28 * MIB)
        _run(["sfdisk", "-q", "--no-reread", path], _LAYOUT)
        root, home = scratch / "root", scratch / "home"
        for name in ("etc", "usr/bin", "home", "var/log"):
            (root / name).mkdir(parents=True)
        (root / "etc/fstab").write_text(
            f"UUID={ROOT_UUID} / ext4 defaults 0 1\nUUID={HOME_UUID} /home ext4 defaults 0 2\n"
        )
        (root / "etc/hostname").write_text("web01\n")
        (root / "etc/localtime").symlink_to("/usr/share/zoneinfo/UTC")
        (root / "usr/bin/env").write_bytes(b"\x7fELF" + bytes(3000))
        (home / "ada").mkdir(parents=True)
        (home / "ada/payroll.xlsx").write_bytes(b"salaries" * 1000)
        (home / "ada/notes.txt").write_text("one\n")
        _mkfs(path, root, ROOT_AT, ROOT_SIZE, ROOT_UUID)
        _mkfs(path, home, HOME_AT, HOME_SIZE, HOME_UUID)

    @contextmanager
    def mounted(self, start: int, size: int) -> Iterator[Path]:
        """One partition, by the kernel, writable."""
        place = self._scratch / f"mnt-{start}"
        place.mkdir(exist_ok=True)
        _run(["mount", "-o", f"loop,offset={start},sizelimit={size}", self.path, place])
        try:
            yield place
            os.sync()
        finally:
            _run(["umount", place])


def _mkfs(image: Path, content: Path, start: int, size: int, uuid: str) -> None:
    options = ["-q", "-F", "-U", uuid, "-E", f"offset={start},root_owner=0:0", "-d", content]
    _run(["mkfs.ext4", *options, image, f"{size >> 10}k"])


def _run(argv: list[object], text: str | None = None) -> None:
    subprocess.run(
        [str(word) for word in argv], input=text, text=True, check=True, timeout=60, capture_output=True
    )
