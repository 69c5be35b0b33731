"""What is told of a volume: the same words in the mount's point.json and by `vmfs show`."""

from __future__ import annotations

from typing import Any

from vmfs.volumes.guest import READABLE
from vmfs.volumes.layout import FoundVolume


def is_readable(volume: FoundVolume) -> bool:
    """Whether there is a reader for the volume's file system."""
    return volume.content is not None and volume.content.type in READABLE


def volume_facts(volume: FoundVolume) -> dict[str, Any]:
    """For JSON. `size` is bytes; `type` as blkid has it, null where nothing known is on the volume; `on` are
    the keys of the volumes it lies on; `group` and `logical` name an LVM volume as its guest does."""
    content, partition = volume.content, volume.partition
    return {
        "name": volume.name,
        "key": volume.key,
        "kind": volume.kind,
        "size": volume.space.size,
        "type": content.type if content else None,
        "label": content.label if content else None,
        "uuid": content.uuid if content else None,
        "on": list(volume.members),
        "group": volume.group,
        "logical": volume.logical,
        "partition": None
        if partition is None
        else {
            "number": partition.number,
            "start": partition.start,
            "type": partition.type,
            "type_name": partition.type_name,
            "label": partition.label,
            "uuid": partition.uuid,
        },
    }
