"""Disks that a real kernel has filled, with what it saw on them: LVM2 and md of every kind, trees of files.

A small guest makes them, in a minute or two without KVM; once for a session is enough (granular_fixtures.py).
"""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
MIB = 1 << 20
DISKS = ("first.raw", "second.raw")
_BLKID = re.compile(r"(/dev/\S+): (.*\bTYPE=.*)")
_FACT = re.compile(r'\b([A-Z]+)="([^"]*)"')


class SeenFile(NamedTuple):
    """A file as the guest's kernel saw it. `mode` is st_mode, `mtime` in nanoseconds, `device` (major,
    minor); `target` is of a symbolic link, `sha256` of a regular file, both else empty."""

    mode: int
    uid: int
    gid: int
    size: int
    mtime: int
    links: int
    device: tuple[int, int]
    target: str = ""
    sha256: str = ""


Facts = tuple[str, str | None, str | None]
"""Type, label and UUID."""


class GuestImage(NamedTuple):
    """`disks` are raw files. `volumes` are the sha256 of what the kernel saw as `vg/lv`, `md/name` or
    `disk/partition number`. `trees` are the files of some of them, by path from their root. `blkid` is
    what that says of devices (`/dev/vda1`, `/dev/vg/lv`)."""

    disks: tuple[Path, ...]
    volumes: dict[str, str]
    trees: dict[str, dict[str, SeenFile]]
    blkid: dict[str, Facts]


# The members of the group and of the arrays, MiB: what gdisk numbers 1, 2, 3, … on each disk.
FIRST = (8, 24, 220, 160, 160, 12, 10, 6, 8, 6, 6, 10, 5, 5, 5, 5)
SECOND = (220, 160, 160, 12, 16, 9, 8, 6, 6, 17, 5, 5, 5, 5)

SCRIPT = r"""
set -e
quiet() { "$@" >/tmp/log 2>&1 || { echo "failed: $*"; cat /tmp/log; exit 1; }; }
part() { # disk, sizes in MiB
    disk=$1; shift
    { echo label: gpt; for size; do echo "size=${size}MiB"; done; } >/tmp/parts
    quiet sfdisk $disk </tmp/parts
}
random() { dd if=/dev/urandom of=$1 bs=1M 2>/dev/null || true; }
part /dev/vda FIRST
part /dev/vdb SECOND
sleep 1

# A group over both disks, six physical volumes of it.
quiet pvcreate /dev/vda3 /dev/vda4 /dev/vda5 /dev/vdb1 /dev/vdb2 /dev/vdb3
quiet vgcreate -s 1M vg-one /dev/vda3 /dev/vda4 /dev/vda5 /dev/vdb1 /dev/vdb2 /dev/vdb3
make() { name=$1; shift; quiet lvcreate -y -Wn -Zn -n $name "$@" vg-one; }
make lin -L 16M
make multi -l 24
make gap -l 3
quiet lvextend -y -l +16 vg-one/multi /dev/vdb1
quiet lvextend -y -l +10 vg-one/multi /dev/vda4
make str2 --type striped -i 2 -I 64k -l 8
make str3 --type striped -i 3 -I 4k -l 9
quiet lvextend -y -i 2 -I 128k -l +4 vg-one/str3
make mir --type mirror -m 1 --mirrorlog core -l 4
make r1 --type raid1 -m 2 -l 5
make r0 --type raid0 -i 3 -I 64k -l 6
make r0m --type raid0_meta -i 2 -I 16k -l 4
make r10 --type raid10 -i 2 -m 1 -I 64k -l 8
make r4 --type raid4 -i 2 -I 64k -l 4
make r5 --type raid5 -i 3 -I 64k -l 9
for kind in la ra rs n; do make r5$kind --type raid5_$kind -i 3 -I 64k -l 3; done
make r6 --type raid6 -i 3 -I 64k -l 6
for kind in nr nc n_6 ls_6 ra_6; do make r6$kind --type raid6_$kind -i 3 -I 64k -l 3; done
make disk -l 8
make snapped -l 8
quiet lvcreate -y --type thin-pool -Zy -n pool -L 72M -c 64k --poolmetadatasize 4M vg-one
quiet lvcreate -y -n thin1 -V 48M --thinpool pool vg-one
quiet lvcreate -y -n thin2 -V 12M --thinpool pool vg-one
quiet lvcreate -y -n untouched -V 12M --thinpool pool vg-one

for name in gap str2 str3 mir r1 r0 r0m r10 r4 r5 r5la r5ra r5rs r5n \
    r6 r6nr r6nc r6n_6 r6ls_6 r6ra_6 snapped; do
    random /dev/vg-one/$name
done

# A classic snapshot: what was overwritten since lies in its store.
quiet lvcreate -y -s -n snap -l 6 -c 8k vg-one/snapped
for at in 3 17 18 19 40 99 5 64; do
    dd if=/dev/urandom of=/dev/vg-one/snapped bs=40k seek=$at count=1 conv=notrunc 2>/dev/null
done
dd if=/dev/urandom of=/dev/vg-one/snap bs=8k seek=77 count=3 conv=notrunc 2>/dev/null

# A disk within a volume.
printf 'label: dos\nsize=2MiB\nsize=3MiB\n' | quiet sfdisk /dev/vg-one/disk
dd if=/dev/urandom of=/dev/vg-one/disk bs=1M seek=1 count=6 conv=notrunc 2>/dev/null

# Arrays, one of them with a group in it.
array() { quiet mdadm --create --run "$@"; }
array /dev/md11 --name=mirror --metadata=1.2 --level=1 --raid-devices=2 /dev/vda6 /dev/vdb4 --assume-clean
array /dev/md12 --name=zones --metadata=1.2 --level=0 --chunk=16 --raid-devices=2 /dev/vda7 /dev/vdb5
array /dev/md13 --name=row --metadata=1.0 --level=linear --raid-devices=2 /dev/vda8 /dev/vdb6
array /dev/md14 --metadata=0.90 --level=1 --raid-devices=2 /dev/vda9 /dev/vdb7 --assume-clean
array /dev/md15 --name=five --metadata=1.1 --level=5 --chunk=64 --raid-devices=3 \
    /dev/vda10 /dev/vda11 /dev/vdb8 --assume-clean
array /dev/md16 --name=old --metadata=1.2 --level=0 --layout=original --chunk=64 --raid-devices=3 \
    /dev/vda12 /dev/vdb9 /dev/vdb10
array /dev/md17 --name=far --level=10 --layout=f2 --chunk=64 --raid-devices=3 \
    /dev/vda13 /dev/vda14 /dev/vdb11 --assume-clean
array /dev/md18 --name=offset --level=10 --layout=o2 --chunk=64 --raid-devices=3 \
    /dev/vda15 /dev/vdb12 /dev/vdb13 --assume-clean
array /dev/md19 --name=near --level=10 --layout=n2 --chunk=64 --raid-devices=2 \
    /dev/vda16 /dev/vdb14 --assume-clean
for number in 12 13 14 15 16 17 18 19; do random /dev/md$number; done
quiet pvcreate /dev/md11
quiet vgcreate -s 1M vg-two /dev/md11
quiet lvcreate -y -Wn -n inner -l 4 vg-two
random /dev/vg-two/inner

# Mirrors that lose their first leg: what is written then is only on the others.
quiet mdadm /dev/md14 --fail /dev/vda9
dd if=/dev/urandom of=/dev/md14 bs=1M seek=2 count=3 conv=notrunc 2>/dev/null
quiet dmsetup --noudevsync wipe_table vg--one-r1_rimage_0
dd if=/dev/urandom of=/dev/vg-one/r1 bs=1M seek=1 count=2 conv=notrunc 2>/dev/null

# File systems, with trees of files.
tree() {
    mkdir -p $1/etc $1/deep/er/est $1/many
    cp /script $1/etc/script; chmod 4751 $1/etc/script; chown 1000000:77 $1/etc/script
    printf '' >$1/empty; printf x >$1/one
    dd if=/dev/urandom of=$1/deep/er/est/big bs=64k count=37 2>/dev/null
    dd if=/dev/urandom of=$1/sparse bs=4k count=2 seek=200 2>/dev/null; truncate -s 5000001 $1/sparse
    ln $1/one $1/deep/other-name-of-one
    ln -s ../etc/script $1/deep/short
    ln -s $(printf 'a%.0s' $(seq 200))/$(printf 'b%.0s' $(seq 200)) $1/long
    ln -s /nowhere "$1/$(printf 'gr\303\274\303\237e') und leer"
    for number in $(seq 200); do echo $number >$1/many/file-$number; done
    mkfifo $1/fifo; mknod $1/null c 1 3; mknod $1/disk b 253 7; chmod 1777 $1/deep
    /sbin/touch -h -d '2001-09-09 01:46:40.123456789 UTC' $1/one $1/long
    /sbin/touch -d '1999-12-31 23:59:59 UTC' $1/deep/er
}
quiet mkfs.vfat -n ESP /dev/vda1
quiet mkfs.ext4 -L boot /dev/vda2
quiet mkfs.ext4 -L lin /dev/vg-one/lin
export TEST_DIR=1 TEST_DEV=1 QA_CHECK_FS=1
quiet mkfs.xfs -L multi /dev/vg-one/multi
quiet mkfs.ext4 -L thin /dev/vg-one/thin1
for name in vda2 vg-one/lin vg-one/multi vg-one/thin1; do
    mount /dev/$name /mnt; tree /mnt; umount /mnt
done
dd if=/dev/urandom of=/dev/vg-one/thin2 bs=100k seek=30 count=9 conv=notrunc 2>/dev/null

# A snapshot in the pool, and both sides go on.
quiet lvcreate -y -s -n thinsnap vg-one/thin1
quiet lvchange -ay -K vg-one/thinsnap
mount /dev/vg-one/thin1 /mnt
dd if=/dev/urandom of=/mnt/deep/er/est/big bs=64k count=9 seek=5 conv=notrunc 2>/dev/null
echo later >/mnt/later; rm /mnt/many/file-1*; umount /mnt
dd if=/dev/urandom of=/dev/vg-one/thinsnap bs=64k seek=600 count=5 conv=notrunc 2>/dev/null

sync
echo 3 >/proc/sys/vm/drop_caches
seen() { set -- $1 $(sha256sum <$2); echo "volume $1 $2"; }
for volume in $(lvs --noheadings --separator / -o vg_name,lv_name); do
    [ $volume = vg-one/pool ] || seen $volume /dev/$volume
done
seen md/mirror /dev/md11; seen md/zones /dev/md12; seen md/row /dev/md13
seen md/0.90 /dev/md14; seen md/five /dev/md15; seen md/old /dev/md16
seen md/far /dev/md17; seen md/offset /dev/md18; seen md/near /dev/md19
seen 0/1 /dev/vda1; seen 0/2 /dev/vda2; seen 1/6 /dev/vdb6
blkid -p /dev/vda? /dev/vda?? /dev/vdb? /dev/vdb?? || true
for name in lin multi thin1 thinsnap; do blkid -p /dev/vg-one/$name; done
blkid -p /dev/md11
# The kernel does not look for partitions in a logical volume by itself.
loop=$(losetup -f); losetup -P $loop /dev/vg-one/disk; sleep 1
for number in 1 2; do seen vg-one/disk/$number ${loop}p$number; done
losetup -d $loop

list() {
    cd $2
    find . -mindepth 1 -print0 | xargs -0 /sbin/stat -c "file|$1|%n|%f|%u|%g|%s|%.9Y|%h|%t|%T"
    find . -type f -print0 | xargs -0 sha256sum | sed "s#^#sum|$1|#"
    find . -type l | while IFS= read -r path; do echo "link|$1|$path|$(readlink "$path")"; done
    cd /
}
for name in vda2 vg-one/lin vg-one/multi vg-one/thin1 vg-one/thinsnap; do
    case $name in *multi) options=ro,nouuid,norecovery;; *) options=ro,noload;; esac
    mount -o $options /dev/$name /mnt; list ${name/vda2/0\/2} /mnt; umount /mnt
done
vgchange -an >/dev/null 2>&1
for number in 11 12 13 14 15 16 17 18 19; do mdadm --stop /dev/md$number 2>/dev/null; done
"""


def build(folder: Path) -> None:
    """Makes the disks in `folder`, by booting a guest, and leaves there what it said."""
    sys.path.insert(0, str(ROOT / "tools" / "lib"))
    try:
        from guest import kit
    finally:
        sys.path.pop(0)
    for name, sizes in zip(DISKS, (FIRST, SECOND), strict=True):
        with (folder / name).open("wb") as file:
            file.truncate((sum(sizes) + 4) * MIB)
    script = SCRIPT.replace("FIRST", " ".join(map(str, FIRST))).replace("SECOND", " ".join(map(str, SECOND)))
    output = kit.run(script, [folder / name for name in DISKS], seconds=600)
    for name in DISKS:
        (folder / name).chmod(0o444)
    (folder / "output").write_text(output)


def load(folder: Path) -> GuestImage:
    """What `build` has made."""
    volumes: dict[str, str] = {}
    trees: dict[str, dict[str, SeenFile]] = {}
    facts_of: dict[str, Facts] = {}
    for line in (folder / "output").read_text().splitlines():
        if line.startswith("volume "):
            _, name, digest = line.split()
            volumes[name] = digest
        elif line.startswith("file|"):
            _, volume, path, *facts = line.split("|")
            trees.setdefault(volume, {})[path.removeprefix("./")] = _seen(facts)
        elif line.startswith("sum|"):
            _, volume, said = line.split("|")
            digest, path = said.split("  ./", 1)
            trees[volume][path] = trees[volume][path]._replace(sha256=digest)
        elif line.startswith("link|"):
            _, volume, path, target = line.split("|")
            path = path.removeprefix("./")
            trees[volume][path] = trees[volume][path]._replace(target=target)
        elif (match := _BLKID.match(line)) is not None:
            said_of = dict(_FACT.findall(match[2]))
            facts_of[match[1]] = (said_of["TYPE"], said_of.get("LABEL"), said_of.get("UUID"))
    disks = tuple(folder / name for name in DISKS)
    return GuestImage(disks, volumes, trees, facts_of)


def _seen(facts: list[str]) -> SeenFile:
    mode, uid, gid, size, mtime, links, major, minor = facts
    seconds, _, rest = mtime.partition(".")
    return SeenFile(
        mode=int(mode, 16),
        uid=int(uid),
        gid=int(gid),
        size=int(size),
        mtime=int(seconds) * 10**9 + int(rest),
        links=int(links),
        device=(int(major, 16), int(minor, 16)),
    )
