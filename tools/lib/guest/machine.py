"""A disk that boots: a boot loader, Debian's kernel and busybox on ext4, with a login prompt on the serial
console.

The guest counts its boots in /var/log/boots and says the number, `boots: 1`, before its prompt, `NAME login:`
(root, no password). It obeys the power button.
"""

from __future__ import annotations

from pathlib import Path

from guest import kit
from guest.cpio import Archive
from guest.initramfs import add_modules, find_program
from guest.packages import unpacked

SIZE = 256 << 20
_MODULES = (
    *("virtio_pci", "virtio_blk", "virtio_scsi", "sd_mod", "ata_piix", "nvme"),
    *("button", "evdev", "virtio_rng"),
)
_EXTLINUX = """SERIAL 0 115200
DEFAULT linux
LABEL linux
  KERNEL /boot/vmlinuz
  INITRD /boot/initrd
  APPEND console=ttyS0 quiet loglevel=3 panic=5 random.trust_cpu=on
"""
_EARLY = """#!/bin/busybox sh
/bin/busybox --install -s /bin
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
modprobe -a MODULES 2>/dev/null
disk=
while [ -z "$disk" ]; do disk=$(findfs LABEL=root 2>/dev/null) || sleep 0.1; done
mount -t ext4 -o rw "$disk" /root
umount /proc /sys
mount --move /dev /root/dev
exec switch_root /root /sbin/init
"""
_INITTAB = """::sysinit:/etc/rc
::respawn:/bin/busybox acpid -d -l /dev/null
ttyS0::respawn:/bin/busybox getty -L 115200 ttyS0 vt100
::shutdown:/bin/busybox umount -a -r
"""
_RC = """#!/bin/sh
mount -t proc proc /proc
mount -t sysfs sys /sys
hostname -F /etc/hostname
echo "$(cat /proc/sys/kernel/random/boot_id)" >>/var/log/boots
sync
echo "boots: $(wc -l </var/log/boots)"
"""
_MAKE = """set -e
printf '2048,,83,*\\n' | sfdisk -q /dev/vda
# What the boot loader can read.
mkfs.ext4 -q -O ^64bit,^metadata_csum -L root /dev/vda1
mount /dev/vda1 /mnt
cd /mnt
mkdir -p bin sbin dev proc sys tmp root etc/acpi/PWRF boot/extlinux var/log
cp /bin/busybox bin/busybox
chroot . /bin/busybox --install -s /bin
ln -s ../bin/busybox sbin/init
cp /data/vmlinuz /data/initrd boot/
cp /data/extlinux.conf boot/extlinux/
cp /data/inittab /data/rc /data/hostname etc/
echo 'root::0:0:root:/root:/bin/sh' >etc/passwd
echo 'root:x:0:' >etc/group
echo 'LABEL=root / ext4 defaults 0 1' >etc/fstab
printf '#!/bin/sh\\npoweroff\\n' >etc/acpi/PWRF/00000080
chmod 755 etc/rc etc/acpi/PWRF/00000080
extlinux --install boot/extlinux
cd /
umount /mnt
dd if=/data/mbr.bin of=/dev/vda conv=notrunc status=none
"""


def make_bootable(path: Path, name: str = "web01") -> None:
    """Make the disk, a new sparse raw file of `SIZE` bytes; some 15 s. `name` is its host name. Raises
    GuestError."""
    root = unpacked()
    early = Archive()
    early.file("bin/busybox", find_program(root, "busybox").read_bytes(), 0o755)
    early.file("init", _EARLY.replace("MODULES", " ".join(_MODULES)).encode(), 0o755)
    for folder in ("proc", "sys", "dev", "root", "sbin"):
        early.directory(folder)
    add_modules(early, root, _MODULES)
    files = {
        "vmlinuz": kit.kernel().read_bytes(),
        "initrd": early.to_bytes(),
        "mbr.bin": (root / "usr/lib/syslinux/mbr/mbr.bin").read_bytes(),
        "extlinux.conf": _EXTLINUX.encode(),
        "inittab": _INITTAB.encode(),
        "rc": _RC.encode(),
        "hostname": name.encode() + b"\n",
    }
    with open(path, "xb") as disk:
        disk.truncate(SIZE)
    kit.run(_MAKE, [path], files={f"/data/{file}": content for file, content in files.items()})
