"""Which engine, and the secret that logs in to it: options, configuration file, keyring, prompt."""

from __future__ import annotations

import argparse
import getpass
import logging
import os
import sys
from dataclasses import replace

from ingest.engine.session import PATIENCE, Engine
from ingest.engine.settings import EngineSettings, api_url, base_url
from vmfs.cli.secrets import line_of_command, line_of_file
from vmfs.cli.settings import EngineTable, load_settings
from vmfs.errors import UsageError, VmfsError

log = logging.getLogger(__name__)

_MAX_CONNECTIONS = 32
"""To imageio, for one disk."""


def add_engine_arguments(parser: argparse.ArgumentParser) -> None:
    """--engine, and what else says how to log in to it."""
    parser.add_argument(
        "--engine",
        metavar="NAME",
        help="name of an engine in the configuration file, or its URL; default the only one in the file",
    )
    add_login_arguments(parser)
    parser.add_argument(
        "--ca-file", metavar="FILE", help="trust an engine whose CA certificate is in FILE (PEM)"
    )


def add_login_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--username", metavar="USER", help="log in as USER, as in admin@internal")
    parser.add_argument(
        "--password-file", metavar="FILE", help="read the password from the first line of FILE"
    )


def connection_count(text: str) -> int:
    """For argparse."""
    if not (text.isascii() and text.isdecimal() and 1 <= int(text) <= _MAX_CONNECTIONS):
        raise argparse.ArgumentTypeError(f"{text!r} is no number of connections; use 1 to {_MAX_CONNECTIONS}")
    return int(text)


def find_engine(args: argparse.Namespace) -> EngineSettings:
    """The engine that the user means, with the password. Raises UsageError, VmfsError."""
    name, table = _table(args.engine)
    table = replace(
        table,
        username=args.username or table.username,
        ca_file=args.ca_file or table.ca_file,
        insecure=table.insecure and not args.ca_file,
    )
    if args.password_file:
        table = replace(table, password_file=args.password_file, password_command=None)
    return engine_settings(name, table)


def open_engine(args: argparse.Namespace, *, patience: float = PATIENCE) -> Engine:
    """A session with the engine that the user means; `patience` in seconds."""
    return Engine.connect(find_engine(args), patience=patience)


def engine_settings(name: str, table: EngineTable) -> EngineSettings:
    """With the password, asked for if need be. Raises UsageError, VmfsError."""
    url = api_url(table.url)
    if not table.username:
        raise UsageError(f"engine {name}: no user name; give --username, or set username in [engine.{name}]")
    if table.insecure:
        log.warning("engine %s: its certificate is not checked (insecure = true)", name)
    elif table.ca_file and not os.path.isfile(table.ca_file):
        raise VmfsError(
            f"engine {name}: there is no CA file {table.ca_file}; get it with: vmfs-ingest engine trust "
            f"{base_url(url)} --name {name}"
        )
    return EngineSettings(
        name=name,
        url=url,
        username=table.username,
        password=_password(name, url, table),
        ca_file=table.ca_file,
        insecure=table.insecure,
    )


def _table(named: str | None) -> tuple[str, EngineTable]:
    engines = load_settings().engines
    if named is None:
        if len(engines) == 1:
            return next(iter(engines.items()))
        why = (
            "there are several in the configuration file"
            if engines
            else "there is none in the configuration file"
        )
        raise UsageError(f"no engine; give --engine ({why})")
    if named in engines:
        return named, engines[named]
    if not any(mark in named for mark in ".:/"):
        raise UsageError(
            f"the configuration file has no engine {named!a}; add it with: vmfs-ingest engine trust URL "
            f"--name {named}"
        )
    url = api_url(named)
    # What the file says of the engine at this address holds, whatever it calls it.
    for name, table in engines.items():
        if _same(table.url, url):
            return name, table
    return base_url(url).removeprefix("https://"), EngineTable(url=url)


def _same(told: str, url: str) -> bool:
    try:
        return api_url(told) == url
    except UsageError:
        return False


def _password(name: str, url: str, table: EngineTable) -> str:
    what = f"password {{}} of engine {name}"
    if table.password_file:
        found = line_of_file(table.password_file, what.format("file"))
    elif table.password_command:
        found = line_of_command(table.password_command, what.format("command"))
    elif (kept := _kept_password(url, table.username or "")) is not None:
        return kept
    else:
        return _ask(f"Password of {table.username} at {base_url(url)}: ")
    try:
        password = found.decode()
    except UnicodeDecodeError:
        raise VmfsError(f"the password of engine {name} is not valid UTF-8; write it anew") from None
    if not password:
        raise VmfsError(f"the password of engine {name} is empty; its first line must have it")
    return password


def _kept_password(url: str, username: str) -> str | None:
    """What was kept by: keyring set https://engine.example.com USER."""
    try:
        import keyring
        import keyring.errors
    except ImportError:
        return None
    try:
        found: str | None = keyring.get_password(base_url(url), username)
    except (keyring.errors.KeyringError, OSError, RuntimeError) as error:
        log.info("the keyring cannot be read: %s", error)
        return None
    return found or None


def _ask(prompt: str) -> str:
    missing = UsageError(
        "no password for the engine; give --password-file, set password_file or password_command in the "
        "configuration file, or keep it in the keyring"
    )
    if sys.stdin is None or not sys.stdin.isatty():
        raise missing
    try:
        return getpass.getpass(prompt)
    except EOFError:
        raise missing from None
