"""tools/demo: the command."""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from qemu import QemuError

from .boot import BootedVm
from .engine import EngineVm
from .one_disk import OneDisk
from .stage import Stage
from .terminal import DemoError, tell
from .yesterday import Yesterday

FREE_SPACE_NEEDED = 4 << 30


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="tools/demo", description="Back up a disk, mount the backup; then a VM of an oVirt engine."
    )
    parser.add_argument("--keep", action="store_true", help="leave the disks and the repository in place")
    arguments = parser.parse_args()
    # A demo that is stopped cleans up as one that ends.
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda received, _: sys.exit(128 + received))
    begin = time.monotonic()
    folder = os.environ.get("TMPDIR", "/var/tmp")  # noqa: S108 - the folder in it is made safely
    if shutil.disk_usage(folder).free < FREE_SPACE_NEEDED:
        tell(f"demo: {folder} has less than 4 GiB free; set TMPDIR to a folder that has more")
        return 1
    work = Path(tempfile.mkdtemp(prefix="vmfs-demo.", dir=folder))
    try:
        with contextlib.ExitStack() as stack:
            tell(f"$ cd {work}")
            os.chdir(work)
            stack.callback(os.chdir, "/")
            stage = Stage(stack)
            disk = OneDisk(stage)
            disk.run()
            Yesterday(stage, disk).run()
            EngineVm(stage).run()
            BootedVm(stage).run()
            stage.summary()
    except (DemoError, QemuError, subprocess.CalledProcessError) as error:
        tell(f"\ndemo FAILED: {error}")
        return 1
    except KeyboardInterrupt:
        tell("\ndemo: stopped")
        return 128 + signal.SIGINT
    finally:
        if arguments.keep:
            tell(f"left in place: {work}")
        elif str(work) in Path("/proc/self/mounts").read_text():
            tell(f"demo: something in {work} is still mounted, so it is left in place")
        else:
            shutil.rmtree(work)
    tell(f"\nEvery file is as it was, in {time.monotonic() - begin:.0f} seconds.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
