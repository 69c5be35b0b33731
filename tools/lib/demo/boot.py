"""A chapter: a VM that comes up from its backup, without a restore."""

from __future__ import annotations

import json
from pathlib import Path

from guest.errors import GuestError
from guest.machine import make_bootable

from .stage import Stage
from .terminal import DemoError, run, tell, title

VM = "web2"


class BootedVm:
    """In the current folder, with the repository of the chapters before."""

    def __init__(self, stage: Stage) -> None:
        self.stage = stage

    def run(self) -> None:
        title("13. A VM that boots from its backup: nothing is restored, and the repository stays as it is")
        disk = Path("bootable.raw")
        tell("a disk with a boot loader, Debian's kernel and busybox is made, in a small guest")
        try:
            make_bootable(disk, VM)
        except GuestError as error:
            raise DemoError(str(error).splitlines()[0]) from None
        run("vmfs-ingest", "image", self.stage.repository, "--vm", VM, disk)
        disk.unlink()
        with self.stage.timed("boot from the backup to the login prompt, and power off"):
            run(
                "vmfs",
                "boot",
                self.stage.repository,
                f"{VM}@latest",
                "--check",
                f"{VM} login:",
                "--memory",
                "256M",
            )
        shown = json.loads(run("vmfs", "show", self.stage.repository, f"{VM}@latest", "--json", show=False))
        boot = shown["boot_test"]
        if boot is None or not boot["passed"]:
            raise DemoError("the boot test left no evidence with the restore point")
        tell(f"vmfs show has the evidence: {boot['matched']!r} after {boot['milliseconds'] / 1000:.1f} s")
