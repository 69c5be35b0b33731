"""A second reader, written from docs/format.md alone: it keeps the document honest.

It shares nothing with the product but the libraries of the algorithms.
"""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import lz4.block
import pytest
from blake3 import blake3
from Crypto.Cipher import AES
from Crypto.Signature import eddsa

from ingest.pipeline import PlannedDisk, ingest
from ingest.sources.base import Extent
from vmfs.format.manifest import Vm
from vmfs.repo.repository import Repository
from vmfs.repo.secret import KeyFile

VECTORS = Path(__file__).parents[1] / "vectors" / "format-v1.json"
CHUNK = 64 << 10


def mac(key: bytes, data: bytes) -> bytes:
    return blake3(data, key=key).digest()


def expect(holds: bool, what: str) -> None:
    if not holds:
        raise ValueError(what)


def open_gcm(key: bytes, nonce: bytes, sealed: bytes, associated: bytes) -> bytes:
    cipher = AES.new(key, AES.MODE_GCM, nonce=nonce, mac_len=16)
    cipher.update(associated)
    return cipher.decrypt_and_verify(sealed[:-16], sealed[-16:])


def unpacked(codec: int, stored: bytes, length: int) -> bytes:
    expect(codec in (0, 1), "codec")
    plain = lz4.block.decompress(stored, uncompressed_size=length) if codec else stored
    expect(len(plain) == length, "plain length")
    return plain


class Reader:
    """A repository in a directory, opened with a passphrase or with the content of a key file."""

    def __init__(self, root: Path, passphrase: bytes = b"", key_file: bytes = b"") -> None:
        self.root = root
        config = (root / "config").read_bytes()
        magic, version, hash_id, aead, zero1, self.id, self.chunk_size, zero2, found, checksum = (
            struct.unpack("<4sBBBB16sII32s32s", config)
        )
        expect(magic == b"VMFC" and checksum == blake3(config[:64]).digest(), "config is damaged")
        expect((version, hash_id, aead, zero1, zero2) == (1, 1, 1, 0, 0), "config of another format")
        self.master = self.open_slot(passphrase, key_file)
        expect(found == mac(self.key("config"), config[:32]), "config's MAC")
        self.epochs = {bytes(8): self.key("metadata root")}
        self.packs: dict[bytes, bytes] = {}
        self.indexes = [self.index(path) for path in (root / "index").iterdir()]

    def key(self, purpose: str) -> bytes:
        return blake3(self.master + self.id, derive_key_context=f"vmfs v1 {purpose}").digest()

    def open_slot(self, passphrase: bytes, key_file: bytes) -> bytes:
        for path in sorted((self.root / "keys").iterdir()):
            data = path.read_bytes()
            magic, version, kdf, cost, r, p, zero, size, _, salt, nonce, _ = struct.unpack_from(
                "<4sBBBBBBHQ32s12s32s", data
            )
            expect((magic, version, zero) == (b"VMFK", 1, 0) and len(data) == 240 + size, "key slot")
            expect(data[-32:] == blake3(data[:-32]).digest(), "key slot's checksum")
            if kdf != (1 if passphrase else 2):
                continue
            if kdf == 1:
                key = hashlib.scrypt(passphrase, salt=salt, n=1 << cost, r=r, p=p, dklen=32, maxmem=1 << 30)
            else:
                key = mac(blake3(salt, derive_key_context="vmfs v1 key file").digest(), key_file)
            binding = self.id + f"keys/{path.name}".encode()
            try:
                opened = open_gcm(key, nonce, data[96 + size : 176 + size], data[: 96 + size] + binding)
            except ValueError:
                continue
            self.master = opened[:32]
            expect(mac(self.key("key slot"), data[:-64] + binding) == data[-64:-32], "key slot's MAC")
            return self.master
        raise ValueError("no key slot opens")

    def sealed(self, kind: int, word: str, name: str) -> bytes:
        data = (self.root / name).read_bytes()
        magic, version, found, codec, zero, length, nonce = struct.unpack_from("<4sBBBBI12s", data)
        expect((magic, version) == (b"VMFS", 1), name)
        key = mac(self.key(f"sealed {word}"), name.encode())
        stored = open_gcm(key, nonce, data[24:], data[:24] + self.id + name.encode())
        expect((found, zero) == (kind, 0) and length <= 64 << 20, name)
        return unpacked(codec, stored, length)

    def index(self, path: Path) -> tuple[list[bytes], int, tuple[int, ...], bytes]:
        """(pack names, fan-out bits, fan-out, entries)"""
        data = path.read_bytes()
        magic, version, bits, zero1, packs, zero2, count = struct.unpack_from("<4sBBHIIQ", data)
        table, rows = 24 + 40 * packs, 24 + 40 * packs + (4 << bits)
        expect((magic, version) == (b"VMFI", 1) and len(data) == rows + 44 * count + 32, "index")
        expect(data[-32:] == mac(self.key("index"), data[:-32] + self.id), "index's MAC")
        expect(blake3(data).hexdigest() == path.name and zero1 == zero2 == 0, "index")
        names = [data[24 + 40 * i :][:32] for i in range(packs)]
        return names, bits, struct.unpack_from(f"<{1 << bits}I", data, table), data[rows:-32]

    def find(self, blob_id: bytes) -> tuple[bytes, int, int]:
        for names, bits, fanout, rows in self.indexes:
            slot = int.from_bytes(blob_id, "big") >> (256 - bits)
            for at in range(fanout[slot - 1] if slot else 0, fanout[slot]):
                found, pack, offset, length = struct.unpack_from("<32sIII", rows, 44 * at)
                if found == blob_id:
                    return names[pack], offset, length
        raise ValueError("in no index")

    def blob(self, kind: int, word: str, blob_id: bytes) -> bytes:
        name, offset, length = self.find(blob_id)
        if name not in self.packs:
            content = (self.root / "packs" / name.hex()[:2] / name.hex()).read_bytes()
            expect((blob_id, offset, length, kind) in self.directory(content), "pack's directory")
            self.packs[name] = content
        return self.open_blob(kind, word, blob_id, self.packs[name][offset : offset + length])

    def open_blob(self, kind: int, word: str, blob_id: bytes, data: bytes) -> bytes:
        magic, version, found_kind, codec, zero, epoch, found, plain, stored, nonce = struct.unpack_from(
            "<4sBBBB8s32sII12s", data
        )
        expect((magic, version) == (b"VMFB", 1) and len(data) == 84 + stored, "blob")
        if epoch not in self.epochs:
            self.epochs[epoch] = self.sealed(4, "epoch", f"epochs/{epoch.hex()}")
        key = mac(self.epochs[epoch], bytes([kind]) + blob_id)
        content = open_gcm(key, nonce, data[68:], data[:68] + self.id)
        expect((found_kind, zero, found) == (kind, 0, blob_id) and stored <= plain <= 4 << 20, "blob")
        expect((kind == 1) == (epoch != bytes(8)), "blob's epoch")
        content = unpacked(codec, content, plain)
        expect(mac(self.key(f"{word} id"), content) == blob_id, "blob's id")
        return content

    def directory(self, pack: bytes) -> list[tuple[bytes, int, int, int]]:
        magic, version, _, start, count = struct.unpack_from("<4sB3sQQ", pack, len(pack) - 56)
        expect((magic, version) == (b"VMFP", 1) and start + 44 * count + 56 == len(pack), "pack")
        expect(mac(self.key("pack directory"), pack[start:-32] + self.id) == pack[-32:], "pack's MAC")
        return [item[:4] for item in struct.iter_unpack("<32sIIB3s", pack[start:-56])]

    def point(self, name: str) -> tuple[bytes, Any]:
        plain = self.sealed(1, "point", name)
        message = b"vmfs v1 point\0" + self.id + name.encode() + b"\0" + plain[96:]
        eddsa.new(eddsa.import_public_key(plain[:32]), "rfc8032").verify(message, plain[32:96])
        return plain[:32], json.loads(plain[96:])

    def disk(self, size: int, root: str | None) -> bytes:
        count = -(-size // self.chunk_size)
        levels = 1
        while 256**levels < count:
            levels += 1
        top = bytes.fromhex(root) if root else bytes(32)
        return b"".join(self.chunk(top, levels, i) for i in range(count))[:size]

    def chunk(self, node: bytes, levels: int, number: int) -> bytes:
        for level in reversed(range(levels)):
            if node == bytes(32):
                break
            slot = number // 256**level % 256
            node = self.blob(2, "node", node)[32 * slot : 32 * slot + 32]
        return bytes(self.chunk_size) if node == bytes(32) else self.blob(1, "data", node)


class BytesSource:
    """A disk that is bytes. Serves as its own reader."""

    block_size = 512
    name = "bytes"

    def __init__(self, content: bytes) -> None:
        self.content = content
        self.size = len(content)

    def reader(self, _: object) -> BytesSource:
        return self

    def extents(self) -> Iterator[Extent]:
        yield Extent(0, self.size, False)

    def dirty_extents(self) -> None:
        return None

    def readinto(self, offset: int, buffer: memoryview) -> None:
        buffer[:] = self.content[offset : offset + len(buffer)]

    def close(self) -> None:
        pass


def test_reads_a_disk_back(repository: Repository, tmp_path: Path) -> None:
    random = blake3(b"disk").digest(length=3 * CHUNK)
    text = b"".join(b"%d bottles of beer\n" % i for i in range(20_000))
    content = random + bytes(258 * CHUNK) + text
    content += bytes(-len(content) % 512)
    source = BytesSource(content)
    made = ingest(
        repository,
        Vm(name="web – ★", id="1"),
        [PlannedDisk("vda", source), PlannedDisk("empty", BytesSource(bytes(1 << 20)))],
        time=datetime(2026, 11, 20, 10, tzinfo=UTC),
        artifacts={"vm.ovf": b"<ovf/>"},
    )
    key_file = bytes(range(64))
    repository.add_key(KeyFile(key_file), label="büro")

    root = tmp_path / "repository"
    reader = Reader(root, b"correct horse")
    assert Reader(root, key_file=key_file).master == reader.master
    with pytest.raises(ValueError, match="no key slot opens"):
        Reader(root, b"wrong")
    (point,) = (root / "points").iterdir()
    signer, manifest = reader.point(f"points/{point.name}")
    assert signer == made.signer
    assert manifest["vm"] == {"name": "web – ★", "id": "1", "engine": None, "cluster": None}
    assert manifest["time"] == "2026-11-20T10:00:00.000000+00:00"
    vda, empty = manifest["disks"]
    assert vda["allocated"] == (3 + -(-len(text) // CHUNK)) * CHUNK
    assert reader.disk(vda["size"], vda["root"]) == content
    assert empty["root"] is None
    assert reader.disk(empty["size"], empty["root"]) == bytes(1 << 20)
    (artifact,) = manifest["artifacts"]
    assert reader.blob(3, "artifact", bytes.fromhex(artifact["id"])) == b"<ovf/>"


def test_reads_the_golden_vectors(tmp_path: Path) -> None:
    """The vectors are a repository's objects: laid out as one, they open."""
    vectors = json.loads(VECTORS.read_text())

    def put(name: str, data: str) -> None:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(bytes.fromhex(data))

    put("config", vectors["config"]["bytes"])
    for item in vectors["key_slots"] + vectors["sealed"] + vectors["packs"] + vectors["points"]:
        put(item["name"], item["bytes"])
    for item in vectors["indexes"]:
        put(f"index/{blake3(bytes.fromhex(item['bytes'])).hexdigest()}", item["bytes"])

    scrypt, key_file = (bytes.fromhex(slot["secret"]) for slot in vectors["key_slots"])
    reader = Reader(tmp_path, scrypt)
    assert Reader(tmp_path, key_file=key_file).master == reader.master == bytes.fromhex(vectors["master"])
    for purpose, key in vectors["keys"].items():
        assert reader.key(purpose).hex() == key
    kinds = {"data": 1, "node": 2, "artifact": 3}
    for blob in vectors["blobs"]:
        plain = reader.blob(kinds[blob["kind"]], blob["kind"], bytes.fromhex(blob["id"]))
        expected = blob["plain"]
        if isinstance(expected, dict):
            assert plain == bytes.fromhex(expected["repeat"]) * expected["count"]
        else:
            assert plain.hex() == expected
    for point in vectors["points"]:
        signer, manifest = reader.point(point["name"])
        assert signer.hex() == point["signer"]
        text = json.dumps(manifest, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
        assert text == point["manifest"]
