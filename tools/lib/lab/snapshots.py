"""Snapshots of a machine's disks, and their removal: libvirt's way with dirty bitmaps.

A snapshot freezes the disk's top layer and puts an empty qcow2 above it. Bitmaps that record go on in one of
the same name there. Removing the snapshot commits the layer above into the frozen one and merges the bitmaps.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from lab import qemu_img
from lab.chain import Disk, Layer, layer_bitmaps, node_options
from lab.daemon import Daemon
from lab.errors import MachineError
from lab.qemu_img import GRANULARITY, Bitmap

Action = tuple[str, dict[str, Any]]
Frozen = Callable[[], contextlib.AbstractContextManager[None]]
"""A machine's: no guest write is in flight inside it."""


def add_bitmap(node: str, name: str, *, persistent: bool = True, disabled: bool = False) -> Action:
    """A transaction's action."""
    data = {"node": node, "name": name, "persistent": persistent, "disabled": disabled}
    return "block-dirty-bitmap-add", {**data, "granularity": GRANULARITY}


def merge_bitmaps(node: str, target: str, sources: Sequence[tuple[str, str]]) -> Action:
    """A transaction's action; `sources` are (node, bitmap)."""
    bitmaps = [{"node": source, "name": name} for source, name in sources]
    return "block-dirty-bitmap-merge", {"node": node, "target": target, "bitmaps": bitmaps}


def take(
    disks: Sequence[Disk],
    folder: Path,
    daemon: Daemon | None,
    snapshot: str,
    checkpoint: str | None,
    instant: Callable[[Callable[[], None]], None],
) -> None:
    """A snapshot, of that id, of all the disks at one instant. `checkpoint`: a new bitmap that starts there,
    on disks that are qcow2. `instant` gets what does it and calls it while the guest is frozen. Raises
    MachineError and leaves nothing behind."""
    made: list[tuple[Disk, Layer]] = []
    try:
        actions: list[Action] = []
        for disk in disks:
            present = layer_bitmaps([disk.top], daemon)[0]
            names = [bitmap.name for bitmap in present if bitmap.usable]
            if checkpoint is not None and disk.top.format == "cow":
                names.append(checkpoint)
            overlay = Layer(disk.new_path(folder), "cow")
            qemu_img.create_overlay(overlay.path, disk.top.path, disk.top.format, disk.size)
            made.append((disk, overlay))
            if daemon is None:
                for name in names:
                    qemu_img.change_bitmap(overlay.path, name, "--add", "-g", str(GRANULARITY))
                continue
            node = daemon.new_id(f"disk{disk.number}")
            daemon.execute("blockdev-add", **node_options(overlay, node, None, read_only=False))
            overlay.node = node
            actions.append(("blockdev-snapshot", {"node": disk.top.node, "overlay": node}))
            actions += [add_bitmap(node, name) for name in names]

        def act() -> None:
            if daemon is not None:
                daemon.transaction(actions)
            for disk, overlay in made:
                disk.top.snapshot = snapshot
                disk.layers.append(overlay)

        instant(act)
    except BaseException:
        for disk, overlay in made:
            if overlay in disk.layers:
                continue  # it was taken, and what failed came after it
            if overlay.node and daemon is not None:
                with contextlib.suppress(MachineError):  # qemu may have ended
                    daemon.execute("blockdev-del", node_name=overlay.node)
            overlay.path.unlink(missing_ok=True)
        raise


def commit(disk: Disk, layer: Layer, daemon: Daemon | None, frozen: Frozen) -> None:
    """Ends the snapshot that froze `layer`: the layer above goes into it. Bitmaps that cannot be merged are
    lost, as their checkpoint then is. Raises MachineError; the chain is then as it was."""
    above = disk.layers[disk.layers.index(layer) + 1]
    if daemon is None:
        _commit_files(disk, layer, above)
        _join(disk, layer, above)
    elif above is disk.top:
        _commit_active(disk, layer, above, daemon, frozen)
    else:
        _commit_inner(disk, layer, above, daemon)
        _join(disk, layer, above)


def _join(disk: Disk, layer: Layer, above: Layer) -> None:
    """`layer` has what `above` had, and is what the later snapshot froze."""
    if layer.shadow is not None:
        layer.shadow.unlink(missing_ok=True)
    layer.snapshot, layer.shadow = above.snapshot, above.shadow
    disk.layers.remove(above)
    above.path.unlink(missing_ok=True)


def _commit_active(disk: Disk, layer: Layer, above: Layer, daemon: Daemon, frozen: Frozen) -> None:
    """The guest goes on writing, to both layers in the end. It stands still for the pivot only: at a kill
    until then the old chain is whole, and after it the new one."""
    job = daemon.new_id("commit")
    daemon.execute(
        "block-commit",
        job_id=job,
        device=above.node,
        top_node=above.node,
        base_node=layer.node,
        auto_dismiss=False,
    )
    try:
        daemon.wait_job(job, "ready")
        with frozen():
            daemon.execute("job-complete", id=job)
            daemon.end_job(job)
            _join(disk, layer, above)
            _merge(layer, above, daemon)
    except MachineError:
        with contextlib.suppress(MachineError):  # qemu may have ended
            daemon.cancel_job(job)
        raise
    daemon.execute("blockdev-del", node_name=above.node)


def _commit_inner(disk: Disk, layer: Layer, above: Layer, daemon: Daemon) -> None:
    """Below the active layer. Nothing writes there, so the bitmaps can be merged before the job is finished,
    while `layer` is still open for writing."""
    job = daemon.new_id("commit")
    daemon.execute(
        "block-commit",
        job_id=job,
        device=disk.top.node,
        top_node=above.node,
        base_node=layer.node,
        backing_file=str(layer.path.absolute()),
        auto_finalize=False,
        auto_dismiss=False,
    )
    try:
        daemon.wait_job(job, "pending")
        _merge(layer, above, daemon)
        daemon.execute("job-finalize", id=job)
        daemon.end_job(job)
    except MachineError:
        with contextlib.suppress(MachineError):  # qemu may have ended
            daemon.cancel_job(job)
        raise
    daemon.execute("blockdev-del", node_name=above.node)


def _merge(layer: Layer, above: Layer, daemon: Daemon) -> None:
    """What the bitmaps of `above` say goes into those of the same name in `layer`."""
    if layer.format == "raw":
        return
    below, upper = layer_bitmaps([layer, above], daemon)
    names = {bitmap.name for bitmap in below}
    wanted = _wanted(upper)
    for bitmap in wanted:
        actions = [] if bitmap.name in names else [add_bitmap(layer.node, bitmap.name)]
        actions.append(merge_bitmaps(layer.node, bitmap.name, [(above.node, bitmap.name)]))
        try:
            daemon.transaction(actions)
        except MachineError:
            if bitmap.name in names and daemon.running:  # it misses writes now
                daemon.execute("block-dirty-bitmap-remove", node=layer.node, name=bitmap.name)
    for name in _ended(below, wanted):
        daemon.execute("block-dirty-bitmap-remove", node=layer.node, name=name)


def _commit_files(disk: Disk, layer: Layer, above: Layer) -> None:
    """The machine is down."""
    below, upper = layer_bitmaps([layer, above], None)
    qemu_img.qemu_img("commit", "-q", "-d", "-f", "qcow2", above.path)
    if layer.format == "cow":
        names = {bitmap.name for bitmap in below}
        wanted = _wanted(upper)
        for bitmap in wanted:
            add = [] if bitmap.name in names else ["--add", "-g", str(GRANULARITY)]
            merge = ["--merge", bitmap.name, "-b", str(above.path), "-F", "qcow2"]
            try:
                qemu_img.change_bitmap(layer.path, bitmap.name, *add, *merge)
            except MachineError:
                qemu_img.change_bitmap(layer.path, bitmap.name, "--remove")
        for name in _ended(below, wanted):
            qemu_img.change_bitmap(layer.path, name, "--remove")
    for follower in disk.layers[disk.layers.index(above) + 1 :][:1]:
        backing = ["-u", "-b", str(layer.path.absolute()), "-F", qemu_img.DRIVERS[layer.format]]
        qemu_img.qemu_img("rebase", "-q", "-f", "qcow2", *backing, follower.path)


def _wanted(bitmaps: Sequence[Bitmap]) -> list[Bitmap]:
    return [bitmap for bitmap in bitmaps if bitmap.usable]


def _ended(below: Sequence[Bitmap], wanted: Sequence[Bitmap]) -> set[str]:
    """Bitmaps that did not go on above: with the layers one, they would pass for whole. Those that are
    inconsistent say so themselves and stay."""
    usable = {bitmap.name for bitmap in below if bitmap.usable}
    return usable - {bitmap.name for bitmap in wanted}


def revert(disk: Disk, layer: Layer, folder: Path) -> None:
    """Of a machine that is down: a new layer above `layer`; those that were above are gone, and all bitmaps
    of those below. Raises MachineError."""
    number = disk.layers.index(layer)
    overlay = Layer(disk.new_path(folder), "cow")
    qemu_img.create_overlay(overlay.path, layer.path, layer.format, _size(layer))
    for gone in disk.layers[number + 1 :]:
        gone.path.unlink(missing_ok=True)
    disk.layers[number + 1 :] = [overlay]
    for below in itertools.islice(disk.layers, number + 1):
        for bitmap in qemu_img.bitmaps(below.path, below.format):
            qemu_img.change_bitmap(below.path, bitmap.name, "--remove")


def _size(layer: Layer) -> int:
    return qemu_img.virtual_size(layer.path, layer.format)
