"""Writing to the user's configuration file: what is there stays as it is, comments and all."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping
from pathlib import Path

import tomlkit
import tomlkit.exceptions
from tomlkit.items import Table

from vmfs.cli.settings import own_config, parse_settings
from vmfs.errors import VmfsError

MODE = 0o600


def remember_engine(name: str, values: Mapping[str, str]) -> Path:
    """Set these keys in the table [engine.NAME] of the user's configuration file, making what is missing.
    Returns the file. Raises VmfsError; then it is as it was."""
    path = own_config()
    try:
        text = path.read_bytes().decode() if path.exists() else ""
        document = tomlkit.parse(text)
    except (OSError, UnicodeDecodeError, tomlkit.exceptions.TOMLKitError) as error:
        raise VmfsError(f"configuration file {path}: {getattr(error, 'strerror', None) or error}") from None
    engines = document.get("engine")
    if engines is None:
        engines = tomlkit.table(is_super_table=True)
        document["engine"] = engines
    if not isinstance(engines, Table):
        raise VmfsError(f"configuration file {path}: engine is no table; write [engine.NAME]")
    table = engines.get(name)
    if table is None:
        table = tomlkit.table()
        engines[name] = table
    for key, value in values.items():
        table[key] = value
    written = tomlkit.dumps(document)
    try:
        parse_settings(tomlkit.parse(written).unwrap())
    except ValueError as error:
        raise VmfsError(f"configuration file {path}: {error}") from None
    write_file(path, written.encode(), mode=MODE)
    return path


def write_file(path: Path, content: bytes, *, mode: int) -> None:
    """Whole or not at all. A file that is there keeps its mode and owner; a link stays one. Raises
    VmfsError."""
    target = Path(os.path.realpath(path))
    temporary = None
    try:
        target.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        descriptor, temporary = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            if target.exists():
                before = target.stat()
                os.fchown(file.fileno(), before.st_uid, before.st_gid)
                os.fchmod(file.fileno(), before.st_mode & 0o7777)
            else:
                os.fchmod(file.fileno(), mode)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, target)
        temporary = None
    except OSError as error:
        raise VmfsError(f"{path} cannot be written: {error.strerror}") from None
    finally:
        if temporary is not None:
            Path(temporary).unlink(missing_ok=True)
