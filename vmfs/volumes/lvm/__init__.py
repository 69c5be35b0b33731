"""LVM2: the logical volumes on the physical volumes of a point, read without device-mapper."""

from vmfs.volumes.lvm.assembly import Groups, Logical, PhysicalVolume

__all__ = ["Groups", "Logical", "PhysicalVolume"]
