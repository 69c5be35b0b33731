"""vmfs-ingest engine: which engines there are, and whom to believe that he is one."""

from __future__ import annotations

import argparse
import ipaddress
import os
import re
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ingest.cli.configuration import remember_engine, write_file
from ingest.cli.engines import add_login_arguments, engine_settings
from ingest.engine.errors import TrustError
from ingest.engine.session import Engine
from ingest.engine.settings import EngineSettings, api_url, base_url
from ingest.engine.trust import Authority, check_authority, fetch_authority, parse_fingerprint
from ingest.engine.vms import list_vms
from vmfs.cli import common
from vmfs.cli.settings import EngineTable, load_settings, own_config
from vmfs.cli.tables import count, format_table
from vmfs.errors import UsageError, VmfsError

_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")


def register(subparsers: Any) -> None:
    parser: argparse.ArgumentParser = subparsers.add_parser(
        "engine",
        help="trust, list and test oVirt engines",
        description="An engine (of oVirt, OLVM or RHV) is named in the configuration file, with its address, "
        "its CA certificate, and where its password comes from.",
    )
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)

    trust = _add(
        actions,
        "trust",
        _trust,
        help="fetch an engine's CA certificate and remember the engine",
        description="Fetch the engine's CA certificate, show its fingerprint, and when you agree keep it and "
        "write the engine into your configuration file. Compare the fingerprint with what this says on the "
        "engine's machine: openssl x509 -noout -fingerprint -sha256 -in /etc/pki/ovirt-engine/ca.pem",
    )
    trust.add_argument("url", metavar="URL", help="https://engine.example.com, or just the host's name")
    trust.add_argument(
        "--name", metavar="NAME", help="what to call the engine; default its host's first name"
    )
    trust.add_argument(
        "--fingerprint", metavar="HEX", help="agree if the SHA-256 fingerprint is this one, without asking"
    )
    add_login_arguments(trust)

    _add(
        actions,
        "list",
        _list,
        help="list the engines of the configuration file",
        description="List the engines that the configuration file names.",
    )
    test = _add(
        actions,
        "test",
        _test,
        help="log in to an engine",
        description="Log in to an engine of the configuration file, and say what it is and what the user may "
        "see there.",
    )
    test.add_argument("name", metavar="NAME", help="name of the engine in the configuration file")


def _add(actions: Any, name: str, run: Any, **texts: str) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = actions.add_parser(name, **texts)
    common.add_verbosity(parser)
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.set_defaults(run=run)
    return parser


def _trust(args: argparse.Namespace) -> int:
    url = api_url(args.url)
    expected = parse_fingerprint(args.fingerprint) if args.fingerprint is not None else None
    settings = EngineSettings(name=args.name or _default_name(url), url=url)
    name = settings.name
    if not _NAME.fullmatch(name):
        raise UsageError(f"an engine cannot be called {name!a}; use letters, digits, - and _, at most 64")
    other = _known(name)
    if other is not None and api_url(other.url) != url:
        raise UsageError(f"there is an engine {name} already, at {other.url}; give another --name")
    authority = fetch_authority(settings)
    check_authority(settings, authority)
    if not args.json:
        print(f"CA of the engine at {base_url(url)}")
        print(f"SHA-256 fingerprint: {authority.fingerprint}")
    _agree(authority, expected)
    ca_file = Path(os.path.abspath(own_config())).with_name(f"{name}.ca.pem")
    write_file(ca_file, authority.pem.encode(), mode=0o644)
    values = {"url": base_url(url), "ca_file": str(ca_file)}
    if args.username:
        values["username"] = args.username
    if args.password_file:
        values["password_file"] = os.path.abspath(args.password_file)
    config = remember_engine(name, values)
    if args.json:
        common.print_json(
            {
                "name": name,
                "url": base_url(url),
                "fingerprint": authority.fingerprint,
                "ca_file": str(ca_file),
                "config": str(config),
            }
        )
    elif not args.quiet:
        print(f"Engine {name} is in {config}, its CA in {ca_file}.")
        if not (args.username or (other and other.username)):
            print(f"Set username and password_file or password_command in [engine.{name}] there.")
    return 0


def _known(name: str) -> EngineTable | None:
    """The engine of that name; the file that is to hold it may not be there yet."""
    if os.environ.get("VMFS_CONFIG") and not own_config().exists():
        return None
    return load_settings().engines.get(name)


def _agree(authority: Authority, expected: str | None) -> None:
    """Raises TrustError, UsageError unless the user agrees."""
    if expected is not None:
        if expected != authority.fingerprint:
            raise TrustError(
                f"the CA has another fingerprint, {authority.fingerprint}: somebody else may be answering in "
                "the engine's place; nothing was changed"
            )
        return
    if sys.stdin is None or not sys.stdin.isatty():
        raise UsageError(
            f"nobody to ask whether {authority.fingerprint} is the engine's fingerprint; "
            "give it as --fingerprint"
        )
    sys.stdout.flush()
    sys.stderr.write("Is that the engine's? (yes/no) ")
    sys.stderr.flush()
    if sys.stdin.readline().strip().lower() != "yes":
        raise VmfsError("not trusted; nothing was changed")


def _default_name(url: str) -> str:
    host = base_url(url).removeprefix("https://").rsplit(":", 1)[0] if "[" not in url else "engine"
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return host.split(".", 1)[0]
    return re.sub(r"[^A-Za-z0-9]", "-", host)


def _list(args: argparse.Namespace) -> int:
    engines = load_settings().engines
    if args.json:
        common.print_json({"engines": [{"name": name, **asdict(table)} for name, table in engines.items()]})
    elif engines:
        rows = [_cells(name, table) for name, table in sorted(engines.items())]
        print(format_table(("NAME", "URL", "USER", "CA"), rows))
    elif not args.quiet:
        print("The configuration file names no engine; add one with: vmfs-ingest engine trust URL")
    return 0


def _cells(name: str, table: EngineTable) -> tuple[str, ...]:
    authority = "not checked" if table.insecure else table.ca_file or "the system's"
    return name, table.url, table.username or "-", authority


def _test(args: argparse.Namespace) -> int:
    table = load_settings().engines.get(args.name)
    if table is None:
        raise UsageError(
            f"the configuration file has no engine {args.name!a}; add it with: vmfs-ingest engine trust URL "
            f"--name {args.name}"
        )
    # A person waits for the answer.
    with Engine.connect(engine_settings(args.name, table), patience=0) as engine:
        vms = list_vms(engine)
    if args.json:
        common.print_json({"name": args.name, "id": engine.id, "product": engine.product, "vms": len(vms)})
    elif not args.quiet:
        print(f"Engine {args.name} ({engine.product or 'unknown product'}, {engine.id}) answers.")
        print(f"{table.username} may see {count(len(vms), 'VM')}.")
    return 0
