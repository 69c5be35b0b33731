"""The key hierarchy: everything comes from one 32-byte master key by BLAKE3 key derivation.

Each derived key has one use. The context strings are part of the format.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import IntEnum

from blake3 import blake3

KEY_SIZE = 32
EPOCH_ID_SIZE = 8
METADATA_EPOCH = bytes(EPOCH_ID_SIZE)


class Kind(IntEnum):
    """What a blob holds."""

    DATA = 1
    NODE = 2
    ARTIFACT = 3


class SealedType(IntEnum):
    """What a sealed object is."""

    POINT = 1
    NOTE = 2
    LEASE = 3
    EPOCH = 4
    TRASH = 5


@dataclass(frozen=True, slots=True)
class Epoch:
    """A root key for blobs. Data blobs have an epoch of their own; nodes and artifacts use the
    repository's metadata epoch, whose id is zero."""

    id: bytes
    root: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class Keys:
    """The keys of one opened repository. `ids` holds one key for each kind of blob."""

    repository_id: bytes
    master: bytes = field(repr=False)
    ids: dict[Kind, bytes] = field(repr=False)
    sealed: dict[SealedType, bytes] = field(repr=False)
    metadata: Epoch = field(repr=False)
    config: bytes = field(repr=False)
    slot: bytes = field(repr=False)
    directory: bytes = field(repr=False)
    index: bytes = field(repr=False)

    def blob_id(self, kind: Kind, plain: bytes | bytearray | memoryview) -> bytes:
        """Keyed BLAKE3-256 of the plaintext: nobody without the key can test whether it is stored."""
        return blake3(plain, key=self.ids[kind]).digest()


def derive(master: bytes, repository_id: bytes, purpose: str) -> bytes:
    """One 32-byte key for one purpose of one repository."""
    return blake3(master + repository_id, derive_key_context=f"vmfs v1 {purpose}").digest()


def derive_keys(master: bytes, repository_id: bytes) -> Keys:
    def key(purpose: str) -> bytes:
        return derive(master, repository_id, purpose)

    return Keys(
        repository_id=repository_id,
        master=master,
        ids={kind: key(f"{kind.name.lower()} id") for kind in Kind},
        sealed={kind: key(f"sealed {kind.name.lower()}") for kind in SealedType},
        metadata=Epoch(METADATA_EPOCH, key("metadata root")),
        config=key("config"),
        slot=key("key slot"),
        directory=key("pack directory"),
        index=key("index"),
    )


def blob_key(epoch: Epoch, kind: int, blob_id: bytes) -> bytes:
    """The AES key of one blob: no key ever seals more than the few copies of one plaintext."""
    return blake3(bytes((kind,)) + blob_id, key=epoch.root).digest()
