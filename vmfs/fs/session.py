"""One mount, from the system call to its end."""

from __future__ import annotations

import logging
import os
import signal
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pyfuse3
import trio

from vmfs.catalog import Catalog, DamagedPoint, PointRow
from vmfs.errors import VmfsError
from vmfs.fs.attributes import Attributes, Ownership
from vmfs.fs.guests.handlers import GuestFiles
from vmfs.fs.guests.opening import GuestSource
from vmfs.fs.helpers import Helpers
from vmfs.fs.log import forget_said
from vmfs.fs.mountpoint import mounted_at
from vmfs.fs.operations import Operations
from vmfs.fs.points import Points
from vmfs.fs.reading import Reader
from vmfs.fs.refresh import ListingSource, Refresher
from vmfs.fs.scratch.files import ScratchFiles
from vmfs.fs.scratch.operations import ScratchAttributes, ScratchOperations
from vmfs.fs.scratch.view import open_view
from vmfs.fs.slots import Slots
from vmfs.fs.tree import Gone, Tree
from vmfs.fs.workers import Workers
from vmfs.repo.repository import Repository

log = logging.getLogger(__name__)

READ_AHEAD_KB = 4096
# The kernel asks for no more at once. Bytes, as is the memory for what is fetched ahead.
SLOT_SIZE = 1 << 20
SLOT_MEMORY = 64 << 20
SCRATCH_THREADS = 4
# How many requests may wait for the store side by side.
_MAX_TASKS = 64
_IDLE_TASKS = 8
# Seconds that requests under way have to finish in when a signal ends the mount.
_GRACE = 5.0
_ENDING = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


@dataclass(frozen=True, slots=True, kw_only=True)
class MountOptions:
    """`mountpoint` is resolved. `allow_other` lets other users in (their files' modes are `ownership`'s).
    With `scratch`, a directory that was checked, raw files are writable; `keep_scratch` names what is
    written, to be mounted again."""

    mountpoint: Path
    ownership: Ownership
    allow_other: bool = False
    scratch: Path | None = None
    keep_scratch: str | None = None


class _Rows:
    """The repository and its catalog, as the listing wants them."""

    def __init__(self, repository: Repository, catalog: Catalog) -> None:
        self._repository = repository
        self._catalog = catalog

    def point_ids(self) -> list[str]:
        return self._repository.point_ids()

    def sync(self) -> list[DamagedPoint]:
        self._repository.refresh()
        return self._catalog.sync(self._repository)

    def points(self) -> list[PointRow]:
        return self._catalog.points()


def serve(repository: Repository, catalog: Catalog, options: MountOptions, ready: Callable[[], None]) -> None:
    """Mount and serve until the mount is unmounted or a signal comes. `ready` is called once, when the mount
    can be used. Raises VmfsError when it cannot be made, StoreError when the repository cannot be listed."""
    forget_said()
    source = ListingSource(_Rows(repository, catalog))
    listing = source.load()
    assert listing is not None  # noqa: S101 - the first one always is
    points = Points(repository)
    tree = Tree(listing, points)
    attributes = Attributes(options.ownership, repository.chunk_size)
    with ExitStack() as stack:
        # Before anything that starts a thread.
        helpers = stack.enter_context(_helpers(repository))
        _hold_lease(repository, stack)
        slots = Slots(
            helpers, lambda: log.error("a helper process died: no reading ahead until the next mount")
        )
        reader = stack.enter_context(Reader(slots))
        refresher = Refresher(tree, source, _forget_name)
        started = trio.Event()
        guests = stack.enter_context(GuestFiles(GuestSource(points), reader))
        if options.scratch is None:
            operations = Operations(tree, reader, refresher, attributes, guests, started.set)
        else:
            # Not before the helpers are there: they would hold its lock after the mount has died.
            view = stack.enter_context(
                open_view(repository, repository.id, options.scratch, options.keep_scratch)
            )
            threads = stack.enter_context(Workers("vmfs-scratch", SCRATCH_THREADS))
            operations = ScratchOperations(
                tree,
                reader,
                refresher,
                ScratchAttributes(options.ownership, repository.chunk_size, view),
                guests,
                started.set,
                view=view,
                files=ScratchFiles(reader, threads),
            )
        stack.enter_context(_mounted(operations, repository.store.url, options))
        log.info("%s is mounted at %s", repository.store.url, options.mountpoint)
        try:
            trio.run(_serve, (refresher.run, slots.run), started, options.mountpoint, ready)
        except ExceptionGroup as group:
            raise _first(group) from group
    log.info("%s is unmounted from %s", repository.store.url, options.mountpoint)


def _first(error: Exception) -> Exception:
    """What went wrong, out of the groups that trio puts it in."""
    while isinstance(error, ExceptionGroup):
        error = error.exceptions[0]
    return error if isinstance(error, VmfsError) else VmfsError(f"the mount ended: {error!r}")


def _helpers(repository: Repository) -> Helpers:
    return Helpers(
        repository.blobs.chunk_into,
        repository.refresh,
        chunk_size=repository.chunk_size,
        slot_size=max(SLOT_SIZE, repository.chunk_size),
        slots=SLOT_MEMORY // max(SLOT_SIZE, repository.chunk_size),
    )


async def _serve(
    background: Sequence[Callable[[], Awaitable[None]]],
    started: trio.Event,
    mountpoint: Path,
    ready: Callable[[], None],
) -> None:
    up = trio.Event()
    async with trio.open_nursery() as nursery:
        for task in background:
            nursery.start_soon(task)
        await nursery.start(_end_on_signal)
        nursery.start_soon(_announce, started, mountpoint, ready, up)
        await pyfuse3.main(min_tasks=_IDLE_TASKS, max_tasks=_MAX_TASKS)
        nursery.cancel_scope.cancel()
    if not up.is_set():
        raise VmfsError(f"the mount at {mountpoint} ended before it was up; see the line above")


async def _announce(started: trio.Event, mountpoint: Path, ready: Callable[[], None], up: trio.Event) -> None:
    await started.wait()
    _raise_read_ahead(mountpoint)
    # The whole way through the kernel and back to us.
    await trio.to_thread.run_sync(os.stat, mountpoint, abandon_on_cancel=True)
    up.set()
    ready()


async def _end_on_signal(task_status: trio.TaskStatus[None]) -> None:
    with trio.open_signal_receiver(*_ENDING) as signals:
        task_status.started()
        async for number in signals:
            log.info("%s: ending the mount", signal.Signals(number).name)
            pyfuse3.terminate()
            break
        await trio.sleep(_GRACE)
        raise VmfsError(f"requests still under way after {_GRACE:.0f} s were given up")


@contextmanager
def _mounted(operations: Operations, url: str, options: MountOptions) -> Iterator[None]:
    try:
        pyfuse3.init(operations, os.fspath(options.mountpoint), _fuse_options(url, options))
    except RuntimeError as error:
        # libfuse has printed the reason, which it keeps from its callers.
        raise VmfsError(f"cannot mount at {options.mountpoint}: {error}; see the line above") from None
    try:
        yield
    finally:
        pyfuse3.close(unmount=True)


def _fuse_options(url: str, options: MountOptions) -> set[str]:
    name = "".join(char if char.isascii() and char.isprintable() else "?" for char in url)
    name = name.replace("\\", "\\\\").replace(",", "\\,")
    chosen = {f"fsname=vmfs:{name}", "subtype=vmfs", "ro" if options.scratch is None else "rw"}
    if options.allow_other or os.geteuid() == 0:
        # Modes and owners count, a guest's too.
        chosen.add("default_permissions")
    # Else only this user gets in, who could read all of it from disks/ anyway: root's files of a guest too.
    if options.allow_other:
        chosen.add("allow_other")
    return chosen


def _hold_lease(repository: Repository, stack: ExitStack) -> None:
    try:
        stack.enter_context(repository.lease("mount"))
    except VmfsError as error:
        # Readers need no permission to write; without a lease, prune cannot know of them.
        log.info("mounting without a lease: %s", error)


def _raise_read_ahead(mountpoint: Path) -> None:
    """Reads through the page cache stay at 128 KiB otherwise, whatever the size of a request may be."""
    mounted = mounted_at(mountpoint)
    if mounted is None:
        return
    try:
        Path(f"/sys/class/bdi/{mounted.device}/read_ahead_kb").write_text(f"{READ_AHEAD_KB}\n")
    except OSError as error:
        log.debug("read-ahead stays as it is: %s", error)


def _forget_name(gone: Gone) -> None:
    pyfuse3.invalidate_entry_async(
        pyfuse3.InodeT(gone.parent), pyfuse3.FileNameT(gone.name), ignore_enoent=True
    )
