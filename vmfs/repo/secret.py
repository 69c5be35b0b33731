"""What opens a repository: a passphrase or a key file."""

from __future__ import annotations

from dataclasses import dataclass, field

from vmfs.errors import UsageError
from vmfs.format.keyslot import MIN_KEY_FILE, Kdf


@dataclass(frozen=True, slots=True)
class Passphrase:
    secret: bytes = field(repr=False)
    kdf = Kdf.SCRYPT

    def __post_init__(self) -> None:
        if not self.secret:
            raise UsageError("the passphrase is empty; give one")


@dataclass(frozen=True, slots=True)
class KeyFile:
    secret: bytes = field(repr=False)
    kdf = Kdf.KEY_FILE

    def __post_init__(self) -> None:
        if len(self.secret) < MIN_KEY_FILE:
            raise UsageError(f"the key file is too short; it needs at least {MIN_KEY_FILE} random bytes")


Secret = Passphrase | KeyFile
