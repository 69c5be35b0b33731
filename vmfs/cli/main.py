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
        "export": "vmfs.cli.export",
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
