"""The content of a note object: what is learnt about a restore point after its commit.

offset size
     0   32  Ed25519 public key of the key slot that wrote it
    32   64  signature over "vmfs v1 note", a zero byte, the repository id,
             the object's name, a zero byte, all that follows here
    96    4  n, number of artifact blobs that the note needs
   100 32·n  their ids
         …  canonical JSON: facts, kind, producer, time

The ids stand outside of the JSON so that whoever looks for what is in use (prune, verify) need not know the
kind of a note to find the blobs that it keeps. The object's name holds the point's id, and is sealed and
signed with the content: a note opens as the note of its point or not at all."""

from __future__ import annotations

import json
import re
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, NamedTuple

from vmfs.format.errors import ContentError, LengthError, UsageError
from vmfs.format.keys import Keys, SealedType
from vmfs.format.signed import SignedKind

MAX_BLOBS = 1 << 20
MAX_FACTS = 16 << 20
"""Bytes of JSON."""
ID_SIZE = 32

_OBJECT = SignedKind(SealedType.NOTE, b"vmfs v1 note\0")
_COUNT = struct.Struct("<I")
_KIND = re.compile(r"[a-z][a-z0-9-]{0,31}")
_KEYS = {"facts", "kind", "producer", "time"}
_LARGEST = (1 << 63) - 1
_DEEPEST = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class Note:
    """`kind` says what the facts are (`files`, `boot`…): lower-case letters, digits and hyphens. `facts` is a
    JSON object without fractions: they have no one way to be written. `blobs` are the artifact blobs it
    needs."""

    kind: str
    time: datetime
    facts: Mapping[str, Any]
    blobs: tuple[bytes, ...] = field(default=())
    producer: str = ""

    def to_bytes(self) -> bytes:
        """What is signed. Raises UsageError for a kind or facts that cannot be kept."""
        if not _KIND.fullmatch(self.kind):
            raise UsageError(
                f"{self.kind!a} cannot be the kind of a note; use lower-case letters and hyphens"
            )
        if len(self.blobs) > MAX_BLOBS or any(len(blob_id) != ID_SIZE for blob_id in self.blobs):
            raise UsageError(f"a note of kind {self.kind} needs blobs that cannot be; at most {MAX_BLOBS}")
        body = _json(self)
        if len(body) > MAX_FACTS:
            raise UsageError(
                f"a note of kind {self.kind} is too long; its facts have at most {MAX_FACTS} bytes"
            )
        return _COUNT.pack(len(self.blobs)) + b"".join(self.blobs) + body

    @staticmethod
    def from_bytes(data: bytes) -> Note:
        """Raises LengthError, and ContentError for anything that to_bytes would not have written."""
        if len(data) < _COUNT.size:
            raise LengthError("a note is cut short")
        (count,) = _COUNT.unpack_from(data)
        start = _COUNT.size + count * ID_SIZE
        if count > MAX_BLOBS or len(data) < start:
            raise LengthError("a note is shorter than its list of blobs")
        body = data[start:]
        if len(body) > MAX_FACTS:
            raise LengthError("a note's facts are too long")
        ids = tuple(data[at : at + ID_SIZE] for at in range(_COUNT.size, start, ID_SIZE))
        try:
            note = _parse(json.loads(body), ids)
            canonical = _json(note) == body
        except (ValueError, KeyError, TypeError, AttributeError, OverflowError, UsageError) as error:
            raise ContentError(f"note makes no sense: {error}") from error
        except RecursionError:
            raise ContentError("note makes no sense: it nests too deep") from None
        if not canonical:
            raise ContentError("note makes no sense: it is not canonical JSON")
        return note


class SignedNote(NamedTuple):
    signer: bytes
    note: Note


def encode(name: str, note: Note, *, seed: bytes, nonce: bytes, keys: Keys) -> bytes:
    """The whole object to be stored as `name`, signed with the Ed25519 `seed`."""
    return _OBJECT.encode(name, note.to_bytes(), seed=seed, nonce=nonce, keys=keys)


def decode(name: str, data: bytes, keys: Keys) -> SignedNote:
    signer, body = _OBJECT.decode(name, data, keys)
    return SignedNote(signer, Note.from_bytes(body))


def _json(note: Note) -> bytes:
    _check(note.facts, 0)
    tree = {
        "facts": note.facts,
        "kind": note.kind,
        "producer": note.producer,
        "time": note.time.astimezone(UTC).isoformat(timespec="microseconds"),
    }
    text = json.dumps(tree, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    try:
        return text.encode()
    except UnicodeEncodeError:
        raise UsageError("a note holds text that is not valid UTF-8") from None


def _parse(tree: dict[str, Any], ids: tuple[bytes, ...]) -> Note:
    if set(tree) != _KEYS:
        raise ValueError("its keys are not those of a note")
    if not isinstance(tree["kind"], str) or not _KIND.fullmatch(tree["kind"]):
        raise ValueError("its kind is none")
    if not isinstance(tree["producer"], str) or not isinstance(tree["facts"], dict):
        raise ValueError("a text is not a text, or the facts are no object")
    time = datetime.fromisoformat(tree["time"])
    if time.tzinfo is None:
        raise ValueError("time has no zone")
    return Note(kind=tree["kind"], time=time, facts=tree["facts"], blobs=ids, producer=tree["producer"])


def _check(value: Any, depth: int) -> None:
    """Facts are JSON with one way to write each value."""
    if depth > _DEEPEST:
        raise UsageError(f"a note's facts nest deeper than {_DEEPEST}")
    if isinstance(value, Mapping):
        if not all(isinstance(key, str) for key in value):
            raise UsageError("a note's facts have a key that is not text")
        for item in value.values():
            _check(item, depth + 1)
    elif isinstance(value, list | tuple):
        for item in value:
            _check(item, depth + 1)
    elif type(value) is int:
        if not -_LARGEST <= value <= _LARGEST:
            raise UsageError("a note's facts have a number of more than 63 bits")
    elif value is not None and not isinstance(value, str | bool):
        raise UsageError(
            f"a note's facts have a {type(value).__name__}; use text, whole numbers, true, false, null, "
            "lists and objects"
        )
