"""The life of an image transfer under what clients see: its export, its ticket, and their end."""

from __future__ import annotations

import time
from typing import Any

from lab.engine import disks
from lab.engine.core import Engine
from lab.engine.errors import Refused
from lab.engine.model import FINISHED_TRANSFER, Disk, Host, Transfer, new_id
from lab.imageio import ImageioError
from lab.machine import Format, MachineError
from lab.nbd_server import NbdServer
from lab.process import remove_socket_folder
from lab.qemu_img import virtual_size

NAMES = {"download": "Download", "upload": "Upload"}
MAX_TICKET_TRIES = 600
OPENING_SECONDS = 60


def open_transfer(engine: Engine, transfer: Transfer, disk: Disk) -> None:
    try:
        _open(engine, transfer, disk)
    finally:
        with engine.lock:
            transfer.opening = False
            engine.changed.notify_all()


def _open(engine: Engine, transfer: Transfer, disk: Disk) -> None:
    engine.step()
    try:
        host = _choose_host(engine, transfer)
        url = _export(engine, transfer, disk)
    except (MachineError, Refused) as error:
        text = str(error)
        engine.event(10802, f"VDSM host1 command StartNbdServerVDS failed: {text}", "error")
        reason = "failed to create a signed image ticket"
        engine.event(1068, f"Transfer was stopped by system. Reason: {reason}.", "error")
        stop_by_system(engine, transfer)
        return
    with engine.lock:
        transfer.host_id = host.id
    try:
        _add_ticket(engine, transfer, disk, host, url)
    except ImageioError as error:
        engine.event(
            10802, f"VDSM {host.name} command AddImageTicketVDS failed: {error}", "error", host_id=host.id
        )
        engine.event(
            1069, "Transfer was stopped by system. Reason: failed to add host image ticket.", "error"
        )
        stop_by_system(engine, transfer)
        return
    with engine.lock:
        if transfer.phase != "initializing":
            # Cancelled meanwhile.
            return
        # Before the faults of the moment, which may end it: the end waits for the opening.
        transfer.opening = False
        set_phase(engine, transfer, "transferring")
    facts = {"transfer": transfer.id, "disk": disk.id, "vm": transfer.vm_id, "backup": transfer.backup_id}
    engine.faults.moment("transferring", **facts)


def _choose_host(engine: Engine, transfer: Transfer) -> Host:
    """A running VM's backup is read on the VM's host, everything else where the client likes."""
    vm = engine.vms.get(transfer.vm_id or "")
    if transfer.backup_id is not None and vm is not None and vm.host_id is not None:
        return engine.host(vm.host_id)
    if transfer.wanted_host is not None:
        return engine.host(transfer.wanted_host)
    return next(iter(engine.hosts.values()))


def _export(engine: Engine, transfer: Transfer, disk: Disk) -> str:
    """The NBD URL for the ticket. Raises MachineError, with what qemu said."""
    if transfer.backup_id is not None:
        backup = engine.backup(transfer.backup_id)
        export = backup.exports[disk.id]
        if export.error is not None:
            raise MachineError(export.error)
        return export.url
    if transfer.snapshot_image is not None and transfer.snapshot_image != disk.image_id:
        layer = disk.images.index(transfer.snapshot_image)
        form: Format = "cow" if layer or disk.format == "cow" else "raw"
        folder = engine.folder / "servers"
        server = NbdServer(folder, engine.sockets(), f"nbd-{transfer.id}", disk.files[layer], form)
        engine.servers[transfer.id] = server
        return server.url
    return engine.machine_of(disk).export_image(disk.id, writable=transfer.direction == "upload")


def _add_ticket(engine: Engine, transfer: Transfer, disk: Disk, host: Host, url: str) -> None:
    """On the host, and on the proxy one that leads there. Raises ImageioError when the host refuses."""
    backup = engine.backups.get(transfer.backup_id or "")
    dirty = backup is not None and backup.disks.get(disk.id) == "incremental"
    life = int(engine.timing.ticket_life)
    options = engine.faults.take("ticket-not-renewed", disk=disk.id)
    if options is not None:
        transfer.no_renewal = True
        life = int(options.get("life", life))
    ticket: dict[str, Any] = {
        "uuid": new_id(),
        "size": disk.size,
        "url": url,
        "timeout": life,
        "inactivity_timeout": transfer.inactivity_timeout,
        "ops": ["read" if transfer.direction == "download" else "write"],
        "sparse": disk.sparse,
        "dirty": dirty,
        "transfer_id": transfer.id,
    }
    host.imageio.add_ticket(ticket)
    direct = f"{host.imageio.url}/images/{ticket['uuid']}"
    through: str | None = None
    if engine.proxy is not None:
        try:
            engine.proxy.add_ticket({**ticket, "url": direct})
            through = f"{engine.proxy.url}/images/{ticket['uuid']}"
        except ImageioError as error:
            engine.event(1094, f"Failed to add image ticket to ovirt-imageio-proxy: {error}", "warning")
    with engine.lock:
        transfer.ticket_id = ticket["uuid"]
        transfer.tickets.append(ticket["uuid"])
        transfer.expires = time.monotonic() + life
        transfer.transfer_url, transfer.proxy_url = engine.route(transfer, direct, through)


def renew(engine: Engine, transfer: Transfer) -> bool:
    """Give the ticket another life. False: there is none any more."""
    host, ticket = engine.hosts.get(transfer.host_id or ""), transfer.ticket_id
    if host is None or ticket is None:
        return False
    life = int(engine.timing.ticket_life)
    try:
        host.imageio.extend_ticket(ticket, life)
        if engine.proxy is not None:
            engine.proxy.extend_ticket(ticket, life)
    except ImageioError:
        return False
    transfer.expires = time.monotonic() + life
    return True


def end(engine: Engine, transfer: Transfer, phase: str) -> None:
    """Set a phase that leads to the end, and go there. Under the engine's lock."""
    transfer.phase = phase
    engine.changed.notify_all()
    engine.spawn("end-transfer", lambda: _finish(engine, transfer))


def _finish(engine: Engine, transfer: Transfer) -> None:
    engine.step()
    engine.wait(lambda: not transfer.opening, OPENING_SECONDS)
    disk = engine.disks.get(transfer.disk_id)
    failing = transfer.phase != "finalizing_success"
    by_user = transfer.phase == "cancelled_user"
    if failing:
        set_phase(engine, transfer, "finalizing_cleanup" if by_user else "finalizing_failure")
    if transfer.direction == "upload":
        engine.faults.moment("upload-finalizing", disk=transfer.disk_id, transfer=transfer.id)
    _remove_ticket(engine, transfer)
    _close_export(engine, transfer, disk)
    keep = False
    if not failing and transfer.direction == "upload" and disk is not None:
        options = engine.faults.take("upload-verification", disk=disk.id)
        if options is not None or not _verified(disk):
            failing, keep = True, not (options or {}).get("remove", False)
            set_phase(engine, transfer, "finalizing_failure")
    engine.step()
    with engine.lock:
        if disk is not None and disk.transfer_id == transfer.id:
            disk.transfer_id = None
            disk.status = "illegal" if failing and transfer.direction == "upload" else "ok"
    if by_user:
        set_phase(engine, transfer, "finished_cleanup")
        engine.step()
    name = f"Image {NAMES[transfer.direction]} with disk {disk.alias if disk else transfer.disk_id}"
    if failing:
        if transfer.direction == "upload" and disk is not None and not keep:
            disks.discard(engine, disk)
        text = f"{name} was cancelled." if by_user else f"{name} failed."
        engine.event(1033 if by_user else 1034, text, "normal" if by_user else "error")
        set_phase(engine, transfer, "finished_failure")
    else:
        engine.event(1032, f"{name} succeeded.")
        set_phase(engine, transfer, "finished_success")
    if engine.faults.take("transfer-purged", disk=transfer.disk_id) is not None:
        forget(engine, transfer)


def _remove_ticket(engine: Engine, transfer: Transfer) -> None:
    """A busy one (409) is tried again, and the transfer goes on finalizing as long."""
    host, ticket = engine.hosts.get(transfer.host_id or ""), transfer.ticket_id
    busy = engine.faults.take("ticket-busy", disk=transfer.disk_id) if ticket else None
    if busy is not None:
        engine.pause(float(busy.get("seconds", 2)))
    if host is not None and ticket is not None:
        for _ in range(MAX_TICKET_TRIES):
            try:
                state = host.imageio.remove_ticket(ticket)
            except ImageioError as error:
                if error.status != 409:
                    break
                engine.pause(engine.timing.monitor)
                continue
            if state is not None:
                transfer.transferred = int(state.get("transferred", transfer.transferred))
            break
        if engine.proxy is not None:
            try:
                engine.proxy.remove_ticket(ticket)
            except ImageioError as error:
                engine.event(10802, f"Failed to remove image ticket from the proxy: {error}", "warning")
    with engine.lock:
        transfer.ticket_id = transfer.transfer_url = transfer.proxy_url = None
        transfer.active = False


def _close_export(engine: Engine, transfer: Transfer, disk: Disk | None) -> None:
    server = engine.servers.pop(transfer.id, None)
    if server is not None:
        server.close()
    elif transfer.backup_id is None and disk is not None:
        engine.machine_of(disk).close_export(disk.id)


def _verified(disk: Disk) -> bool:
    """What vdsm does with an image that a user has uploaded: it must be what the engine thinks it is."""
    form: Format = "cow" if len(disk.images) > 1 or disk.format == "cow" else "raw"
    try:
        return virtual_size(disk.files[-1], form) == disk.size
    except (MachineError, IndexError):
        return False


def set_phase(engine: Engine, transfer: Transfer, phase: str) -> None:
    with engine.lock:
        transfer.phase = phase
        if phase in ("finished_success", "finished_failure"):
            transfer.finished = time.monotonic()
        engine.changed.notify_all()


def stop_by_system(engine: Engine, transfer: Transfer) -> None:
    """An upload waits for somebody to resume it; a download is cancelled."""
    with engine.lock:
        if transfer.phase in FINISHED_TRANSFER or transfer.phase.startswith(("finalizing", "cancelled")):
            return
        if transfer.direction == "upload":
            transfer.phase = "paused_system"
            engine.changed.notify_all()
        else:
            end(engine, transfer, "cancelled_system")


def forget(engine: Engine, transfer: Transfer) -> None:
    """The engine's clean-up of what has ended: 404 from now on."""
    with engine.lock:
        if engine.transfers.pop(transfer.id, None) is not None:
            engine.forgotten[transfer.id] = transfer


def close_servers(engine: Engine) -> None:
    """For the end of the lab."""
    for transfer_id in list(engine.servers):
        engine.servers.pop(transfer_id).close()
    remove_socket_folder(engine.folder / "servers")
