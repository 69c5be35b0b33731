"""The guest's first and only file system: busybox, the tools of volumes and file systems, modules, init."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterable
from pathlib import Path

from guest.cpio import Archive
from guest.errors import GuestError
from guest.packages import kernel_version

PROGRAMS = (
    *("lvm", "dmsetup", "mdadm", "pdata_tools"),
    *("mke2fs", "e2fsck", "tune2fs", "resize2fs", "dumpe2fs", "debugfs"),
    *("mkfs.xfs", "xfs_repair", "xfs_db", "xfs_io", "mkfs.btrfs", "btrfs"),
    *("mkfs.fat", "fsck.fat", "mkfs.exfat", "fsck.exfat", "mkntfs", "ntfs-3g"),
    *("sfdisk", "sgdisk", "blkid", "wipefs", "lsblk", "losetup", "blockdev", "mount", "umount", "fsfreeze"),
    *("cp", "touch", "stat", "ln", "mv", "dd", "truncate", "tar", "fallocate", "setfattr", "getfattr"),
    *("setfacl", "getfacl", "setcap", "extlinux"),
)
_ALIASES = {
    **dict.fromkeys(
        ("pvcreate", "pvs", "vgcreate", "vgs", "vgchange", "lvcreate", "lvs", "lvconvert"), "lvm"
    ),
    **dict.fromkeys(("lvchange", "lvremove", "vgcfgbackup", "lvextend", "vgscan", "pvscan"), "lvm"),
    **dict.fromkeys(("thin_check", "thin_dump", "cache_check"), "pdata_tools"),
    **{f"mkfs.{name}": "mke2fs" for name in ("ext2", "ext3", "ext4")},
    **{f"fsck.{name}": "e2fsck" for name in ("ext2", "ext3", "ext4")},
    "mkfs.vfat": "mkfs.fat",
    "mkfs.ntfs": "mkntfs",
}
MODULES = (
    *("virtio_pci", "virtio_blk", "virtio_scsi", "sd_mod", "ata_piix", "loop", "virtio_rng"),
    *("dm_mod", "dm_mirror", "dm_raid", "dm_snapshot", "dm_thin_pool", "dm_zero", "dm_flakey"),
    *("raid0", "raid1", "linear", "raid10", "raid456"),
    *("xfs", "btrfs", "vfat", "exfat", "ntfs3", "isofs", "fuse"),
    *("nls_utf8", "nls_cp437", "nls_iso8859_1", "nls_ascii", "crc32c_generic", "button", "evdev"),
)
_FOLDERS = ("sbin", "bin", "usr/sbin", "usr/bin")
_LIBRARIES = ("lib/x86_64-linux-gnu", "usr/lib/x86_64-linux-gnu")
_LOADER = "lib64/ld-linux-x86-64.so.2"

# The console (ttyS0) is for the kernel and for the last word; what the script prints goes to ttyS1, unmixed.
_INIT = """#!/bin/busybox sh
/bin/busybox --install -s /bin
export PATH=/sbin:/bin HOME=/root TERM=dumb LC_ALL=C.UTF-8 MKE2FS_CONFIG=/etc/mke2fs.conf
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
mkdir -p /dev/pts /dev/shm /run/lvm /run/lock/lvm /tmp /mnt /root /var/lock
mount -t tmpfs tmp /tmp
mount -t tmpfs run /run && mkdir -p /run/lvm /run/lock/lvm
ln -s /proc/mounts /etc/mtab
modprobe -a MODULES 2>/dev/null
stty -F /dev/ttyS1 raw -echo
cd /tmp
sh /script </dev/null >/dev/ttyS1 2>&1
status=$?
cd /
umount -a -r 2>/dev/null
sync
sleep 0.2
echo "guest: script ended with status $status" >/dev/ttyS0
poweroff -f
"""
# No udev here: device-mapper makes its nodes itself.
_LVM_CONF = """activation { udev_sync = 0 udev_rules = 0 monitoring = 0 }
devices { obtain_device_list_from_udev = 0 use_devicesfile = 0 }
backup { backup = 0 archive = 0 }
global { thin_check_executable = "" }
"""


def build(root: Path) -> bytes:
    """The initramfs, of the unpacked packages. It lacks /script, which goes into a second archive after it.
    Raises GuestError."""
    archive = Archive()
    archive.file("bin/busybox", find_program(root, "busybox").read_bytes(), 0o755)
    archive.file("init", _INIT.replace("MODULES", " ".join(MODULES)).encode(), 0o755)
    archive.file("etc/lvm/lvm.conf", _LVM_CONF.encode())
    archive.file("etc/mke2fs.conf", (root / "etc/mke2fs.conf").read_bytes())
    archive.file("etc/passwd", b"root:x:0:0:root:/root:/bin/sh\n")
    archive.file("etc/group", b"root:x:0:\n")
    for folder in ("proc", "sys", "dev", "run", "tmp", "mnt", "root", "var/lock"):
        archive.directory(folder)
    paths = [find_program(root, name) for name in PROGRAMS]
    for name, path in zip(PROGRAMS, paths, strict=True):
        archive.file(f"sbin/{name}", path.read_bytes(), 0o755)
    for alias, name in _ALIASES.items():
        archive.link(f"sbin/{alias}", name)
    archive.file(_LOADER, _inside(root, _LOADER).read_bytes(), 0o755)
    for library in sorted({found for path in paths for found in _libraries(root, path)}):
        archive.file(f"lib/x86_64-linux-gnu/{library.name}", library.read_bytes(), 0o755)
    add_modules(archive, root, MODULES)
    return archive.to_bytes()


def find_program(root: Path, name: str) -> Path:
    for folder in _FOLDERS:
        if (path := root / folder / name).is_file():
            return path
    raise GuestError(f"no package of the test guest holds the program {name}")


def add_modules(archive: Archive, root: Path, names: Iterable[str]) -> None:
    """The modules of those names, and the ones that they need; names of none are built in."""
    version = kernel_version(root)
    base = Path("lib/modules") / version
    if not (root / base / "modules.dep").is_file():
        busybox = find_program(root, "busybox")
        _output([str(busybox), "depmod", "-b", str(root.resolve()), version])
    needs: dict[str, list[str]] = {}
    by_name: dict[str, str] = {}
    for line in (root / base / "modules.dep").read_text().splitlines():
        path, _, rest = line.partition(":")
        needs[path] = rest.split()
        by_name[Path(path).name.partition(".")[0].replace("-", "_")] = path
    wanted: set[str] = set()
    waiting = [by_name[name] for name in names if name in by_name]
    while waiting:
        path = waiting.pop()
        if path not in wanted:
            wanted.add(path)
            waiting += needs[path]
    for path in sorted(wanted):
        archive.file(str(base / path), (root / base / path).read_bytes())
    dep = "".join(f"{path}: {' '.join(needs[path])}\n" for path in sorted(wanted))
    archive.file(str(base / "modules.dep"), dep.encode())
    for extra in ("modules.builtin", "modules.order"):
        archive.file(str(base / extra), (root / base / extra).read_bytes())


def _libraries(root: Path, program: Path) -> list[Path]:
    """The shared libraries that it links against, as the guest's own loader finds them."""
    search = ":".join(str(root / folder) for folder in _LIBRARIES)
    loader = str(_inside(root, _LOADER))
    listing = _output([loader, "--inhibit-cache", "--library-path", search, "--list", str(program)])
    found = []
    for line in listing.splitlines():
        name, arrow, rest = line.strip().partition(" => ")
        if not arrow:
            continue
        path = rest.rpartition(" (")[0]
        if not path.startswith(str(root)):
            raise GuestError(f"no package of the test guest holds {name}, which {program.name} needs")
        found.append(Path(path))
    return found


def _inside(root: Path, path: str) -> Path:
    """The file at that path, links followed as if the directory were the root."""
    here = root / path
    while here.is_symlink():
        target = os.readlink(here)
        here = root / target.lstrip("/") if target.startswith("/") else here.parent / target
    return here


def _output(command: list[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "LC_ALL": "C"})
    if done.returncode != 0:
        raise GuestError(f"{' '.join(command)}: {done.stderr.strip() or done.stdout.strip()}")
    return done.stdout
