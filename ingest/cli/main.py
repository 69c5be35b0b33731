"""The command `vmfs-ingest`."""

from __future__ import annotations

from vmfs.cli.entry import Program

PROGRAM = Program(
    name="vmfs-ingest",
    description="Back up disks of virtual machines into a vmfs repository, and put them back.",
    commands={
        "image": "ingest.cli.image",
        "engine": "ingest.cli.engine",
        "vms": "ingest.cli.vms",
        "backup": "ingest.cli.backup",
        "restore": "ingest.cli.restore",
        "checkpoints": "ingest.cli.checkpoints",
        "completion": "vmfs.cli.completion",
    },
)


def main(argv: list[str] | None = None) -> int:
    return PROGRAM.main(argv)
