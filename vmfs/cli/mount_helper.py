"""What mount(8) runs for `mount -t fuse.vmfs REPO DIR -o …` and for lines of fstab.

mount(8) looks for /sbin/mount.fuse.vmfs first, then runs /sbin/mount.fuse3, which calls `vmfs REPO DIR -o …`.
Both come here. Exit status as mount(8) wants it: 0 done, 1 wrong call, 32 failed.
"""

from __future__ import annotations

import getopt
import sys
from collections.abc import Sequence

from vmfs.cli.main import PROGRAM

_WRONG_CALL = 1
_FAILED = 32
# What mount(8), fstab and systemd say to themselves, or what the mount is in any case.
# fmt: off
_IGNORED = frozenset((
    "ro", "rw", "defaults", "auto", "noauto", "nofail", "_netdev", "user", "nouser", "users", "nousers",
    "owner", "noowner", "group", "nogroup", "exec", "noexec", "suid", "nosuid", "dev", "nodev", "async",
    "sync", "dirsync", "atime", "noatime", "diratime", "nodiratime", "relatime", "norelatime",
    "strictatime", "nostrictatime", "lazytime", "nolazytime", "silent", "loud", "default_permissions",
))
# fmt: on
_IGNORED_PREFIXES = ("x-", "X-", "comment", "fsname=", "subtype=")
_FLAGS = {"allow_other": "--allow-other", "verbose": "--verbose"}
_VALUES = {
    "uid": "--uid",
    "gid": "--gid",
    "passphrase_file": "--passphrase-file",
    "passphrase_command": "--passphrase-command",
    "key_file": "--key-file",
    "cache_dir": "--cache-dir",
    "catalog": "--catalog",
    "log_file": "--log-file",
    "scratch": "--scratch",
    "keep_scratch": "--keep-scratch",
}


def is_mount_call(argv: Sequence[str]) -> bool:
    """Whether `vmfs` was called as mount.fuse3 calls it: REPO DIR -o OPTIONS."""
    return (
        len(argv) == 4 and argv[2] == "-o" and not argv[0].startswith("-") and argv[0] not in PROGRAM.commands
    )


def main(argv: Sequence[str] | None = None) -> int:
    words = list(sys.argv[1:] if argv is None else argv)
    try:
        given, rest = getopt.gnu_getopt(words, "sfnvo:t:N:")
    except getopt.GetoptError as error:
        return _wrong(str(error))
    if len(rest) != 2:
        return _wrong("usage: mount.fuse.vmfs REPO DIR [-sfnv] [-o OPTIONS]")
    flags = {name for name, _ in given}
    command = ["mount"]
    for name, value in given:
        if name == "-o":
            for option in split(value):
                words_for = translate(option)
                if words_for is None and "-s" not in flags:
                    return _wrong(f"unknown mount option {option!r}")
                command += words_for or []
    if "-v" in flags:
        command.append("--verbose")
    if "-f" in flags:
        return 0
    try:
        status = PROGRAM.main([*command, "--", *rest])
    except SystemExit as end:
        return _WRONG_CALL if end.code else 0
    return _FAILED if status else 0


def split(options: str) -> list[str]:
    """The options of a comma-separated list; as in libfuse, a backslash keeps a comma in a value."""
    found = [""]
    escaped = False
    for char in options:
        if escaped or char not in ",\\":
            found[-1] += char
            escaped = False
        elif char == "\\":
            escaped = True
        else:
            found.append("")
    return [option for option in found if option]


def translate(option: str) -> list[str] | None:
    """The words for `vmfs mount`; None for an option that nobody knows."""
    name, equals, value = option.partition("=")
    if option in _IGNORED or option.startswith(_IGNORED_PREFIXES):
        return []
    if option in _FLAGS:
        return [_FLAGS[option]]
    if equals and name in _VALUES:
        return [f"{_VALUES[name]}={value}"]
    return None


def _wrong(message: str) -> int:
    print(f"mount.fuse.vmfs: {message}", file=sys.stderr)
    return _WRONG_CALL
