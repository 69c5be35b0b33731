"""vmfs serve: disks of a restore point as network block devices."""

from __future__ import annotations

import argparse
import logging
import os
import re
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from vmfs.catalog.catalog import Catalog
from vmfs.cli import common
from vmfs.cli.entry import Terminated
from vmfs.cli.export import find_disk
from vmfs.errors import UsageError, VmfsError
from vmfs.format.manifest import Disk
from vmfs.repo.repository import Point, Repository
from vmfs.serve.folder import private_folder
from vmfs.serve.nbdkit import PORT, Address, Server, Tls
from vmfs.serve.relay import Export

log = logging.getLogger(__name__)

_LISTEN = re.compile(r"(?:\[(?P<six>[0-9a-fA-F:.%]+)\]|(?P<host>[^:\[\]]+))(?::(?P<port>[0-9]{1,5}))?\Z")


def register(subparsers: Any) -> None:
    parser: argparse.ArgumentParser = subparsers.add_parser(
        "serve",
        help="serve disks to other programs and machines",
        description="Serve disks of a restore point to other programs and machines, without restoring them.",
    )
    protocols = parser.add_subparsers(dest="protocol", metavar="PROTOCOL", required=True)
    nbd = common.add_repository_command(
        protocols,
        "nbd",
        run,
        help="as network block devices (NBD)",
        description="Serve the disks of a restore point as network block devices, for qemu, libvirt, oVirt "
        "hosts and nbd-client, until it is interrupted. Each disk is an export of the name of its alias; the "
        "one to boot from is also the default export. It is nbdkit that speaks NBD. Nothing is ever written "
        "to the repository.",
    )
    nbd.add_argument(
        "point",
        nargs="*",
        metavar="POINT[:DISK]",
        help="a restore point (an id, a prefix, VM@latest, VM@TIME); with a disk's alias, only that",
    )
    where = nbd.add_mutually_exclusive_group()
    where.add_argument(
        "--socket", metavar="FILE", help="listen at this Unix socket; default one in a new private directory"
    )
    where.add_argument("--listen", metavar="HOST[:PORT]", help=f"listen at this address; default port {PORT}")
    nbd.add_argument(
        "--writable",
        action="store_true",
        help="let clients write to a copy-on-write overlay, which is gone in the end; takes one disk",
    )
    nbd.add_argument(
        "--scratch",
        metavar="DIR",
        help="keep that overlay in DIR; implies --writable; default $TMPDIR or /var/tmp",
    )
    nbd.add_argument(
        "--tls",
        choices=("off", "require"),
        help="whether clients must use TLS; default require where there are certificates or keys. Without "
        "TLS, an address that other machines reach needs --tls off",
    )
    nbd.add_argument(
        "--tls-certificates",
        metavar="DIR",
        help="server's certificate and key: ca-cert.pem, server-cert.pem, server-key.pem",
    )
    nbd.add_argument("--tls-psk", metavar="FILE", help="pre-shared keys, as psktool makes them")
    nbd.add_argument(
        "--tls-verify-peer", action="store_true", help="let in only clients with a certificate of that CA"
    )


def run(args: argparse.Namespace) -> int:
    specs = common.take_repository(args, args.point)
    if len(specs) != 1:
        raise UsageError("vmfs serve nbd takes a repository and one POINT[:DISK]")
    tls = _tls(args)
    address = _address(args)
    if args.listen is not None and tls is None and args.tls != "off" and not address.is_local:
        raise UsageError(
            f"whoever reaches {address.host} could read the disks; give --tls-certificates or --tls-psk, or "
            "--tls off if that network is safe"
        )
    with ExitStack() as stack:
        if address.path is None and args.listen is None:
            address = Address(path=stack.enter_context(private_folder("vmfs-nbd-", _runtime())) / "socket")
        repository = stack.enter_context(common.open_repository(args))
        with common.open_catalog(repository, args) as catalog:
            point, disks = find_disks(catalog, repository, specs[0])
        hold_lease(repository, stack)
        server = Server(exports(repository, point, disks), address, tls=tls, overlay=_overlay(args))
        try:
            with server:
                _announce(args, point, disks, server, tls=tls is not None)
                server.wait()
        except (KeyboardInterrupt, Terminated):
            # That is how it is meant to end.
            log.info("ended")
    return 0


def find_disks(catalog: Catalog, repository: Repository, spec: str) -> tuple[Point, tuple[Disk, ...]]:
    """What POINT[:DISK] means: all disks where none is named, the one to boot from first. Raises
    UsageError."""
    try:
        point = repository.load_point(catalog.resolve(spec))
    except UsageError:
        point, disk = find_disk(catalog, repository, spec)
        return point, (disk,)
    if not point.manifest.disks:
        raise UsageError(f"restore point {point.id} has no disks")
    return point, tuple(sorted(point.manifest.disks, key=_boot_order))


def exports(repository: Repository, point: Point, disks: tuple[Disk, ...]) -> list[Export]:
    return [
        Export(
            name=disk.alias,
            description=f"{disk.alias} of {point.manifest.vm.name}, {point.manifest.time.isoformat()}",
            disk=repository.open_disk(disk),
        )
        for disk in disks
    ]


def hold_lease(repository: Repository, stack: ExitStack) -> None:
    """Until the stack is closed, prune knows of us; where it cannot be told, reading goes on all the same."""
    try:
        stack.enter_context(repository.lease("mount"))
    except VmfsError as error:
        log.info("reading without a lease: %s", error)


def scratch_directory(text: str | None) -> Path:
    """Where overlays go. Raises UsageError when nothing can be written there."""
    path = Path(text or os.environ.get("TMPDIR") or "/var/tmp").absolute()  # noqa: S108 - a directory in it is made
    if not path.is_dir() or not os.access(path, os.W_OK | os.X_OK):
        raise UsageError(f"{path} is no directory that you can write to; choose another --scratch")
    return path


def _boot_order(disk: Disk) -> int:
    return disk.boot_order if disk.boot_order is not None else 1 << 62


def _overlay(args: argparse.Namespace) -> Path | None:
    return scratch_directory(args.scratch) if args.writable or args.scratch else None


def _address(args: argparse.Namespace) -> Address:
    if args.socket is not None:
        return Address(path=Path(args.socket).absolute())
    if args.listen is None:
        return Address()
    found = _LISTEN.match(args.listen)
    port = int(found["port"] or PORT) if found else 0
    if found is None or not 0 < port < 65536:
        raise UsageError(f"{args.listen!r} is no address; write --listen HOST:PORT, [::1]:{PORT} for IPv6")
    return Address(host=found["six"] or found["host"], port=port)


def _tls(args: argparse.Namespace) -> Tls | None:
    given = args.tls_certificates or args.tls_psk
    if args.tls == "off" and given:
        raise UsageError("--tls off takes no certificates and no keys")
    if not given:
        if args.tls == "require" or args.tls_verify_peer:
            raise UsageError("TLS needs --tls-certificates DIR or --tls-psk FILE")
        return None
    for path, option in ((args.tls_certificates, "--tls-certificates"), (args.tls_psk, "--tls-psk")):
        if path is not None and not os.path.exists(path):
            raise UsageError(f"{option} {path} is not there")
    return Tls(
        certificates=Path(args.tls_certificates).absolute() if args.tls_certificates else None,
        psk=Path(args.tls_psk).absolute() if args.tls_psk else None,
        verify_peer=args.tls_verify_peer,
    )


def _runtime() -> Path | None:
    """The user's own directory for sockets, where there is one."""
    path = os.environ.get("XDG_RUNTIME_DIR")
    return Path(path) if path and os.access(path, os.W_OK) else None


def _announce(
    args: argparse.Namespace, point: Point, disks: tuple[Disk, ...], server: Server, *, tls: bool
) -> None:
    """Where each disk is; on a pipe too at once, whoever waits for it."""
    facts = [
        {"disk": disk.alias, "size": disk.size, "uri": server.address.uri(disk.alias, tls=tls)}
        for disk in disks
    ]
    if args.json:
        common.print_json(
            {
                "point": point.id,
                "vm": point.manifest.vm.name,
                "writable": _overlay(args) is not None,
                "disks": facts,
            }
        )
    else:
        for fact in facts:
            print(fact["uri"])
    sys.stdout.flush()
