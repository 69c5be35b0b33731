"""The command `vmfs-ingest`."""

from __future__ import annotations

from vmfs.cli.entry import Program

PROGRAM = Program(
    name="vmfs-ingest",
    description="Back up disks of virtual machines into a vmfs repository.",
    commands={
        "image": "ingest.cli.image",
        "completion": "vmfs.cli.completion",
    },
)


def main(argv: list[str] | None = None) -> int:
    return PROGRAM.main(argv)
