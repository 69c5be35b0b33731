"""vmfs key: who can open the repository."""

from __future__ import annotations

import argparse
from dataclasses import asdict
from typing import Any

from vmfs.cli import common
from vmfs.cli.secrets import add_secret_arguments, ask_passphrase, given_secret
from vmfs.cli.tables import format_table
from vmfs.errors import UsageError
from vmfs.repo.keyring import DEFAULT_COST, SlotInfo, list_slots, remove_slot
from vmfs.repo.repository import read_config
from vmfs.store import open_store


def register(subparsers: Any) -> None:
    parser: argparse.ArgumentParser = subparsers.add_parser(
        "key",
        help="add, remove and list keys",
        description="A repository has one key slot or more, each opened by a passphrase or a key file of its "
        "own. To change a passphrase, add the new one, then remove the slot of the old one. No data is "
        "written anew: whoever has a copy of the repository and an old passphrase can still read the copy.",
    )
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)

    add = common.add_repository_command(
        actions,
        "add",
        _add,
        help="add a passphrase or a key file",
        description="Add a key slot. The repository is opened with a key that it has.",
    )
    add_secret_arguments(add, "new-", "the new")
    add.add_argument("--label", metavar="TEXT", default="", help="what to remember the key by")
    add.add_argument(
        "--kdf-cost", type=int, default=DEFAULT_COST, metavar="N", help=f"scrypt cost; default {DEFAULT_COST}"
    )

    remove = common.add_repository_command(
        actions,
        "remove",
        _remove,
        prints_json=False,
        help="remove a key slot",
        description="Remove a key slot, so that its passphrase or key file opens the repository no more. "
        "Open the repository with another key: that shows that there is one.",
    )
    remove.add_argument("slot", nargs="?", metavar="SLOT", help="id of the key slot, or how it begins")

    common.add_repository_command(
        actions,
        "list",
        _list,
        help="list the key slots",
        description="List the key slots. This needs no key, and shows what the slots say of themselves.",
    )


def _add(args: argparse.Namespace) -> int:
    with common.open_repository(args) as repository:
        secret = given_secret(args.new_passphrase_file, args.new_passphrase_command, args.new_key_file)
        if secret is None:
            secret = ask_passphrase(f"New passphrase for {repository.store.url}", new=True)
        slot_id = repository.add_key(secret, label=args.label, cost=args.kdf_cost)
    if args.json:
        common.print_json({"id": slot_id})
    elif not args.quiet:
        print(f"Added key slot {slot_id}.")
    return 0


def _remove(args: argparse.Namespace) -> int:
    rest = common.take_repository(args, [args.slot] if args.slot else [])
    if len(rest) != 1:
        raise UsageError("vmfs key remove takes a repository and the id of a key slot; see vmfs key list")
    slot = rest[0]
    with common.open_repository(args) as repository:
        if repository.slot_id.startswith(slot):
            raise UsageError(
                f"{slot} is the key slot that you have opened the repository with; open it with another to "
                "remove this one"
            )
        remove_slot(repository.store, slot, repository.keys)
    if not args.quiet:
        print(f"Removed key slot {slot}.")
    return 0


def _list(args: argparse.Namespace) -> int:
    store = open_store(common.repository_settings(args).url)
    read_config(store)
    slots = list_slots(store)
    if args.json:
        common.print_json([_facts(slot) for slot in slots])
    else:
        print(format_table(("SLOT", "OPENED BY", "MADE", "LABEL"), [_cells(slot) for slot in slots]))
    return 0


def _facts(slot: SlotInfo) -> dict[str, Any]:
    made = slot.created.isoformat() if slot.created else None
    return {**asdict(slot), "created": made, "public": slot.public.hex()}


def _cells(slot: SlotInfo) -> tuple[str, ...]:
    if slot.error is not None:
        return slot.id, "damaged", "-", slot.error
    made = f"{slot.created:%Y-%m-%d %H:%M}Z" if slot.created else "-"
    return slot.id, slot.kdf, made, slot.label
