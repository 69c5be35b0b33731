"""Where the passphrase or key file comes from: option, environment, configuration file, prompt."""

from __future__ import annotations

import argparse
import getpass
import os
import shlex
import subprocess
import sys
from pathlib import Path

from vmfs.cli.settings import RepositorySettings
from vmfs.errors import UsageError, VmfsError
from vmfs.repo.secret import KeyFile, Passphrase, Secret


def add_secret_arguments(parser: argparse.ArgumentParser, prefix: str = "", what: str = "the") -> None:
    """--passphrase-file, --passphrase-command and --key-file; with a prefix, for another secret than the
    repository's own."""
    group = parser.add_mutually_exclusive_group()
    group.add_argument(
        f"--{prefix}passphrase-file",
        metavar="FILE",
        help=f"read {what} passphrase from the first line of FILE",
    )
    group.add_argument(
        f"--{prefix}passphrase-command",
        metavar="COMMAND",
        help=f"run COMMAND and read {what} passphrase from it",
    )
    group.add_argument(f"--{prefix}key-file", metavar="FILE", help=f"use FILE as {what} key, whole")


def given_secret(file: str | None, command: str | None, key_file: str | None) -> Secret | None:
    """The secret that one of the three names, or None."""
    if key_file:
        return KeyFile(_read(key_file, "key file"))
    if file:
        return Passphrase(line_of_file(file, "passphrase file"))
    if command:
        return Passphrase(line_of_command(command, "passphrase command"))
    return None


def line_of_file(path: str, what: str) -> bytes:
    """Its first line. Raises VmfsError, naming it as `what`."""
    return _first_line(_read(path, what))


def line_of_command(command: str, what: str) -> bytes:
    """The first line that it prints. Raises VmfsError, naming it as `what`."""
    return _first_line(_run(command, what))


def find_secret(args: argparse.Namespace, settings: RepositorySettings, *, new: bool = False) -> Secret:
    """The repository's secret. Raises UsageError when there is none and nobody to ask."""
    environment = os.environ.get
    found = (
        given_secret(args.passphrase_file, args.passphrase_command, args.key_file)
        or given_secret(
            environment("VMFS_PASSPHRASE_FILE"),
            environment("VMFS_PASSPHRASE_COMMAND"),
            environment("VMFS_KEY_FILE"),
        )
        or given_secret(settings.passphrase_file, settings.passphrase_command, settings.key_file)
    )
    return found or ask_passphrase(f"Passphrase for {settings.url}", new=new)


def ask_passphrase(prompt: str, *, new: bool) -> Passphrase:
    """From the terminal; twice for a new one."""
    missing = UsageError("no passphrase; give --passphrase-file, --passphrase-command or --key-file")
    if sys.stdin is None or not sys.stdin.isatty():
        raise missing
    try:
        secret = getpass.getpass(f"{prompt}: ")
        if new and getpass.getpass("The same again: ") != secret:
            raise UsageError("the two passphrases differ; try again")
    except EOFError:
        raise missing from None
    return Passphrase(secret.encode())


def _read(path: str, what: str) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise VmfsError(f"{what} {path}: {error.strerror}") from None


def _run(command: str, what: str) -> bytes:
    try:
        words = shlex.split(command)
        return subprocess.run(words, check=True, stdout=subprocess.PIPE, stdin=subprocess.DEVNULL).stdout
    except (ValueError, IndexError):
        raise UsageError(f"the {what} {command!r} cannot be understood; check its quotes") from None
    except OSError as error:
        raise VmfsError(f"the {what} cannot be run: {words[0]}: {error.strerror}") from None
    except subprocess.CalledProcessError as error:
        status = error.returncode
        how = f"failed with exit status {status}" if status > 0 else f"was ended by signal {-status}"
        raise VmfsError(f"the {what} {how}") from None


def _first_line(data: bytes) -> bytes:
    return data.split(b"\n", 1)[0].removesuffix(b"\r")
