"""The configuration file: names for repositories, so that nobody has to type where they are.

    default = "main"

    [repository.main]
    url = "/backup/main"
    passphrase_file = "/etc/vmfs/main.pass"      # or passphrase_command, or key_file
    catalog = "postgresql+psycopg://vmfs@/vmfs"  # SQLite in the cache directory if left out

$VMFS_CONFIG if set; else ~/.config/vmfs/vmfs.toml over /etc/vmfs/vmfs.toml.
"""

from __future__ import annotations

import os
import tomllib
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import platformdirs

from vmfs.errors import VmfsError


@dataclass(frozen=True, slots=True)
class RepositorySettings:
    url: str
    passphrase_file: str | None = None
    passphrase_command: str | None = None
    key_file: str | None = None
    catalog: str | None = None


@dataclass(frozen=True, slots=True)
class Settings:
    repositories: dict[str, RepositorySettings]
    default: str | None = None

    def find(self, name: str) -> RepositorySettings:
        """The repository of that name; a path or URL that is no name stands for itself."""
        return self.repositories.get(name) or RepositorySettings(url=name)


def load_settings() -> Settings:
    """Raises VmfsError for a file that cannot be understood."""
    if given := os.environ.get("VMFS_CONFIG"):
        return _read(Path(given), required=True)
    system = _read(Path("/etc/vmfs/vmfs.toml"))
    user = _read(platformdirs.user_config_path("vmfs") / "vmfs.toml")
    return Settings({**system.repositories, **user.repositories}, user.default or system.default)


def _read(path: Path, *, required: bool = False) -> Settings:
    try:
        tree = tomllib.loads(path.read_bytes().decode())
    except (FileNotFoundError, NotADirectoryError, PermissionError) as error:
        if required:
            raise VmfsError(f"configuration file {path}: {error.strerror}; check $VMFS_CONFIG") from None
        return Settings({})
    except OSError as error:
        raise VmfsError(f"configuration file {path}: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise VmfsError(f"configuration file {path}: {error}; correct it") from None
    try:
        return _parse(tree)
    except ValueError as error:
        raise VmfsError(f"configuration file {path}: {error}") from None


def _parse(tree: dict[str, Any]) -> Settings:
    """Raises ValueError."""
    if unknown := tree.keys() - {"default", "repository"}:
        raise ValueError(f"unknown key {min(unknown)!r}; remove it")
    tables = tree.get("repository", {})
    if not isinstance(tables, dict):
        raise ValueError("repository is no table; write [repository.NAME]")
    known = {item.name for item in fields(RepositorySettings)}
    repositories = {}
    for name, table in tables.items():
        if not isinstance(table, dict) or "url" not in table:
            raise ValueError(f"[repository.{name}] has no url; add one")
        if unknown := table.keys() - known:
            raise ValueError(f"[repository.{name}] has an unknown key {min(unknown)!r}; remove it")
        for key, value in table.items():
            if not isinstance(value, str) or not value:
                raise ValueError(f"[repository.{name}] has a {key} that is no text; put it in quotes")
        repositories[name] = RepositorySettings(**table)
    default = tree.get("default")
    if default is not None and (not isinstance(default, str) or default not in repositories):
        raise ValueError(f"default names {default!r}, which is no [repository.…]; correct it")
    return Settings(repositories, default)
