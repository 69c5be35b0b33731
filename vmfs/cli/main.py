"""The command `vmfs`."""

from __future__ import annotations

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
    return PROGRAM.main(argv)
