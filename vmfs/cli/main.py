"""The command `vmfs`."""

from __future__ import annotations

import sys

from vmfs.cli.entry import Program

PROGRAM = Program(
    name="vmfs",
    description="A deduplicated, encrypted backup repository for virtual machines that can be mounted.",
    commands={
        "init": "vmfs.cli.init",
        "points": "vmfs.cli.points",
        "show": "vmfs.cli.show",
        "mount": "vmfs.cli.mount",
        "umount": "vmfs.cli.umount",
        "ls": "vmfs.cli.ls",
        "cat": "vmfs.cli.cat",
        "cp": "vmfs.cli.cp",
        "tar": "vmfs.cli.tar",
        "iso": "vmfs.cli.iso",
        "diff": "vmfs.cli.diff",
        "index": "vmfs.cli.index",
        "find": "vmfs.cli.find",
        "history": "vmfs.cli.history",
        "export": "vmfs.cli.export",
        "serve": "vmfs.cli.serve",
        "boot": "vmfs.cli.boot",
        "verify": "vmfs.cli.verify",
        "rebuild": "vmfs.cli.rebuild",
        "stats": "vmfs.cli.stats",
        "key": "vmfs.cli.key",
        "doctor": "vmfs.cli.doctor",
        "completion": "vmfs.cli.completion",
    },
)


def main(argv: list[str] | None = None) -> int:
    # It needs this module's PROGRAM.
    from vmfs.cli import mount_helper

    words = sys.argv[1:] if argv is None else argv
    return mount_helper.main(words) if mount_helper.is_mount_call(words) else PROGRAM.main(words)
