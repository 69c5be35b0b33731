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
        tree = tomllib.loads(path.read_text())
    except FileNotFoundError:
        if required:
            raise VmfsError(f"{path}: no such configuration file; check $VMFS_CONFIG") from None
        return Settings({})
    except PermissionError:
        return Settings({})
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, OSError) as error:
        raise VmfsError(f"{path}: {error}; correct the configuration file") from None
    known = {item.name for item in fields(RepositorySettings)}
    repositories = {}
    for name, table in tree.get("repository", {}).items():
        if not isinstance(table, dict) or "url" not in table:
            raise VmfsError(f"{path}: [repository.{name}] has no url; add one")
        if unknown := set(table) - known:
            raise VmfsError(f"{path}: [repository.{name}] has an unknown key {min(unknown)!r}; remove it")
        repositories[name] = RepositorySettings(**table)
    default = tree.get("default")
    if default is not None and default not in repositories:
        raise VmfsError(f"{path}: default names {default!r}, which is no [repository.…]; correct it")
    return Settings(repositories, default)
