"""The golden vectors: every structure, byte for byte (docs/format.md tells their fields)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from blake3 import blake3

from vmfs.format import (
    blob,
    config,
    filelist,
    index,
    keyslot,
    node,
    note,
    pack,
    point,
    sealed,
    signing,
)
from vmfs.format.blob import Codec
from vmfs.format.config import Config
from vmfs.format.index import PackRef
from vmfs.format.keys import Epoch, Keys, Kind, SealedType, blob_key, derive, derive_keys
from vmfs.format.manifest import Manifest

VECTORS: dict[str, Any] = json.loads(
    (Path(__file__).parents[1] / "vectors" / "format-v1.json").read_text(encoding="utf-8")
)
REPOSITORY_ID = bytes.fromhex(VECTORS["repository_id"])
MASTER = bytes.fromhex(VECTORS["master"])
KEYS = derive_keys(MASTER, REPOSITORY_ID)

Vector = dict[str, Any]


def plain_of(vector: Vector) -> bytes:
    plain = vector["plain"]
    if isinstance(plain, str):
        return bytes.fromhex(plain)
    return bytes.fromhex(plain["repeat"]) * int(plain["count"])


def kind_of(vector: Vector) -> Kind:
    return Kind[vector["kind"].upper()]


def each(field: str) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("vector", VECTORS[field], ids=range(len(VECTORS[field])))


@pytest.mark.parametrize(("purpose", "key"), VECTORS["keys"].items())
def test_derived_keys(purpose: str, key: str) -> None:
    assert derive(MASTER, REPOSITORY_ID, purpose).hex() == key


def test_every_key_has_a_purpose_of_its_own() -> None:
    def used(keys: Keys) -> list[bytes]:
        single = [keys.metadata.root, keys.config, keys.slot, keys.directory, keys.index]
        return [*keys.ids.values(), *keys.sealed.values(), *single]

    assert [key.hex() for key in used(KEYS)] == [
        VECTORS["keys"][purpose]
        for purpose in (
            *("data id", "node id", "artifact id"),
            *("sealed point", "sealed note", "sealed lease", "sealed epoch", "sealed trash"),
            *("metadata root", "config", "key slot", "pack directory", "index"),
        )
    ]
    others = used(derive_keys(MASTER, bytes(16))) + used(derive_keys(bytes(32), REPOSITORY_ID))
    assert len({*used(KEYS), *others}) == 3 * len(used(KEYS))


def test_secrets_are_not_shown() -> None:
    shown = repr((KEYS, keyslot.Opened(MASTER, b"s" * 32), Epoch(b"e" * 8, b"r" * 32)))
    for secret in (MASTER, KEYS.index, KEYS.metadata.root, b"s" * 32, b"r" * 32):
        assert repr(secret) not in shown
        assert secret.hex() not in shown


@each("ids")
def test_ids(vector: Vector) -> None:
    assert KEYS.blob_id(kind_of(vector), plain_of(vector)).hex() == vector["id"]


@each("blob_keys")
def test_blob_keys(vector: Vector) -> None:
    epoch = Epoch(bytes(8), bytes.fromhex(vector["root"]))
    assert blob_key(epoch, kind_of(vector), bytes.fromhex(vector["id"])).hex() == vector["key"]


def test_config() -> None:
    vector = VECTORS["config"]
    data = bytes.fromhex(vector["bytes"])
    settings = Config(REPOSITORY_ID, vector["chunk_size"])
    assert config.encode(settings, KEYS.config) == data
    assert config.decode(data) == settings
    config.authenticate(data, KEYS.config)


@each("key_slots")
def test_key_slot(vector: Vector) -> None:
    data = bytes.fromhex(vector["bytes"])
    seed = bytes.fromhex(vector["seed"])
    slot = keyslot.new_slot(
        keyslot.Kdf.SCRYPT if vector["kdf"] == "scrypt" else keyslot.Kdf.KEY_FILE,
        vector["cost"],
        vector["created_ms"],
        bytes.fromhex(vector["salt"]),
        bytes.fromhex(vector["nonce"]),
        seed,
        vector["label"],
    )
    opened = keyslot.Opened(MASTER, seed)
    secret = bytes.fromhex(vector["secret"])
    place = {"name": vector["name"], "repository_id": REPOSITORY_ID}
    assert slot.public.hex() == vector["public"]
    assert keyslot.wrap(slot, opened, secret, **place) == data
    assert keyslot.parse(data) == slot
    assert keyslot.unwrap(data, secret, **place) == opened
    assert keyslot.unwrap(data, secret + b"\n", **place) is None
    keyslot.authenticate(data, MASTER, **place)


@each("sealed")
def test_sealed(vector: Vector) -> None:
    kind = SealedType[vector["type"].upper()]
    name, nonce, data = vector["name"], bytes.fromhex(vector["nonce"]), bytes.fromhex(vector["bytes"])
    assert Codec(data[6]).name.lower() == vector["codec"]
    assert sealed.unseal(kind, name, data, KEYS) == plain_of(vector)
    again = sealed.seal(kind, name, plain_of(vector), nonce=nonce, keys=KEYS)
    assert sealed.unseal(kind, name, again, KEYS) == plain_of(vector)
    if vector["codec"] == "raw":
        assert again == data


@each("blobs")
def test_blob(vector: Vector) -> None:
    kind, plain, data = kind_of(vector), plain_of(vector), bytes.fromhex(vector["bytes"])
    epoch = Epoch(bytes.fromhex(vector["epoch"]["id"]), bytes.fromhex(vector["epoch"]["root"]))
    blob_id = KEYS.blob_id(kind, plain)
    assert blob_id.hex() == vector["id"]
    header = blob.parse_header(data)
    assert Codec(header.codec).name.lower() == vector["codec"]
    assert header == blob.Header(
        kind,
        header.codec,
        0,
        epoch.id,
        blob_id,
        len(plain),
        len(data) - blob.OVERHEAD,
        bytes.fromhex(vector["nonce"]),
    )
    place: dict[str, Any] = {"epoch": epoch, "repository_id": REPOSITORY_ID}
    assert blob.unseal(data, kind=kind, blob_id=blob_id, **place) == plain
    again = blob.seal(kind, blob_id, plain, nonce=header.nonce, **place)
    assert blob.unseal(again, kind=kind, blob_id=blob_id, **place) == plain
    if vector["codec"] == "raw":
        assert again == data


@each("packs")
def test_pack(vector: Vector) -> None:
    content = b""
    entries = []
    for place in vector["blobs"]:
        item = VECTORS["blobs"][place]
        data = bytes.fromhex(item["bytes"])
        entries.append(pack.Entry(bytes.fromhex(item["id"]), len(content), len(data), kind_of(item)))
        content += data
    whole = content + pack.encode_directory(entries, len(content), KEYS)
    assert whole.hex() == vector["bytes"]
    digest = blake3(whole).hexdigest()
    assert f"packs/{digest[:2]}/{digest}" == vector["name"]
    tail = pack.tail_size(whole[-pack.TRAILER_SIZE :], len(whole))
    assert tail == len(whole) - len(content)
    assert pack.parse_tail(whole[-tail:], len(whole), KEYS) == entries


@each("indexes")
def test_index(vector: Vector) -> None:
    refs = [PackRef(bytes.fromhex(ref["name"]), ref["size"]) for ref in vector["packs"]]
    rows = [
        index.ENTRY.pack(bytes.fromhex(entry["id"]), entry["pack"], entry["offset"], entry["length"])
        for entry in vector["entries"]
    ]
    data = bytes.fromhex(vector["bytes"])
    assert index.encode(refs, rows, KEYS) == data
    assert index.check(data, KEYS) == index.Header(vector["fanout_bits"], len(refs), len(rows))
    assert index.packs(data, index.parse_header(data, len(data))) == refs


@each("nodes")
def test_node(vector: Vector) -> None:
    content = bytearray(node.EMPTY)
    for slot, child in vector["children"].items():
        content[int(slot) * 32 : int(slot) * 32 + 32] = bytes.fromhex(child)
    assert blake3(content).hexdigest() == vector["hash"]
    assert KEYS.blob_id(Kind.NODE, content).hex() == vector["id"]
    assert {str(slot): child.hex() for slot, child in enumerate(node.children(content)) if child} == vector[
        "children"
    ]
    assert node.count(content) == len(vector["children"])


@each("levels")
def test_levels(vector: Vector) -> None:
    assert node.chunk_count(vector["size"], vector["chunk_size"]) == vector["chunks"]
    assert node.levels(vector["size"], vector["chunk_size"]) == vector["levels"]


@each("points")
def test_point(vector: Vector) -> None:
    name, data = vector["name"], bytes.fromhex(vector["bytes"])
    seed, nonce = bytes.fromhex(vector["seed"]), bytes.fromhex(vector["nonce"])
    signer, manifest = point.decode(name, data, KEYS)
    assert signer.hex() == vector["signer"] == signing.provider.public(seed).hex()
    assert manifest.to_bytes().decode() == vector["manifest"]
    assert Manifest.from_bytes(vector["manifest"].encode()) == manifest
    signed = sealed.unseal(SealedType.POINT, name, data, KEYS)
    assert signed.hex() == vector["signer"] + vector["signature"] + vector["manifest"].encode().hex()
    again = point.encode(name, manifest, seed=seed, nonce=nonce, keys=KEYS)
    assert sealed.unseal(SealedType.POINT, name, again, KEYS) == signed
    if vector["codec"] == "raw":
        assert again == data


@each("notes")
def test_note(vector: Vector) -> None:
    name, data = vector["name"], bytes.fromhex(vector["bytes"])
    seed, nonce = bytes.fromhex(vector["seed"]), bytes.fromhex(vector["nonce"])
    signer, content = note.decode(name, data, KEYS)
    assert signer.hex() == vector["signer"] == signing.provider.public(seed).hex()
    assert [blob_id.hex() for blob_id in content.blobs] == vector["blobs"]
    assert content.facts == json.loads(vector["body"])["facts"]
    signed = sealed.unseal(SealedType.NOTE, name, data, KEYS)
    blobs = len(content.blobs).to_bytes(4, "little").hex() + "".join(vector["blobs"])
    assert signed.hex() == vector["signer"] + vector["signature"] + blobs + vector["body"].encode().hex()
    again = note.encode(name, content, seed=seed, nonce=nonce, keys=KEYS)
    assert sealed.unseal(SealedType.NOTE, name, again, KEYS) == signed
    if vector["codec"] == "raw":
        assert again == data


@each("file_lists")
def test_file_list(vector: Vector) -> None:
    entries = [
        filelist.Entry(
            **{**entry, "directory": bytes.fromhex(entry["directory"]), "name": bytes.fromhex(entry["name"])}
        )
        for entry in vector["entries"]
    ]
    assert filelist.decode(bytes.fromhex(vector["bytes"])) == entries
    assert filelist.encode(entries).hex() == vector["bytes"]
