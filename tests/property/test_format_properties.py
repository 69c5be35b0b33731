"""What holds of the format for any content: round trips, and that no change of any byte goes unseen."""

from __future__ import annotations

import struct
import tempfile
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from blake3 import blake3
from hypothesis import HealthCheck, assume, example, given, settings
from hypothesis import strategies as st

from vmfs.format import aead, blob, config, index, keyslot, lz4block, node, pack, point, sealed, signing
from vmfs.format.config import Config
from vmfs.format.errors import AuthenticationError, ContentError, IntegrityError, UsageError
from vmfs.format.keys import Epoch, Kind, SealedType, derive_keys
from vmfs.format.manifest import MAX_DISK_SIZE, Artifact, Disk, Manifest, Vm, check_name
from vmfs.repo.index import Location, Segment, unique_sorted

ID = b"repository id 16"
KEYS = derive_keys(b"m" * 32, ID)
NONCE = b"nonce 12 byt"
EPOCH = Epoch(b"epoch id", b"e" * 32)
NAME = "points/01KFZ9M5T0ABCDEFGHJKMNPQRS"
SLOT_NAME = "keys/0011223344556677"
MANIFEST = Manifest(
    vm=Vm(name="web", id="1"),
    time=datetime(2026, 11, 20, tzinfo=UTC),
    consistency="crash",
    disks=(Disk(id="1", alias="vda", size=1 << 30, root=b"r" * 32, allocated=1 << 18),),
)

PLAIN = st.one_of(
    st.binary(min_size=1, max_size=2000),
    st.builds(
        lambda piece, times, rest: piece * times + rest,
        st.binary(min_size=1, max_size=40),
        st.integers(1, 400),
        st.binary(max_size=200),
    ),
)
KEY = st.binary(min_size=32, max_size=32)
NONCES = st.binary(min_size=12, max_size=12)


# Both providers


@given(KEY, NONCES, st.binary(max_size=3000), st.binary(max_size=100), st.data())
def test_aead_providers_agree(
    key: bytes, nonce: bytes, plain: bytes, aad: bytes, data: st.DataObject
) -> None:
    providers = (aead.PyCryptodome(), aead.Cryptography())
    sealed_bytes = providers[0].encrypt(key, nonce, plain, aad)
    assert len(sealed_bytes) == len(plain) + aead.TAG_SIZE
    assert providers[1].encrypt(key, nonce, memoryview(bytearray(plain)), aad) == sealed_bytes
    bit = data.draw(st.integers(0, 8 * len(sealed_bytes) - 1))
    changed = bytearray(sealed_bytes)
    changed[bit // 8] ^= 1 << bit % 8
    short = sealed_bytes[: data.draw(st.integers(0, len(sealed_bytes) - 1))]
    for provider in providers:
        out = bytearray(len(sealed_bytes))
        with memoryview(out) as view:
            provider.encrypt_into(key, nonce, plain, aad, view)
        assert out == sealed_bytes
        assert provider.decrypt(key, nonce, memoryview(sealed_bytes), aad) == plain
        opened = bytearray(len(plain))
        provider.decrypt_into(key, nonce, memoryview(sealed_bytes), aad, memoryview(opened))
        assert opened == plain
        for bad in (changed, short, sealed_bytes + b"\0", b""):
            with pytest.raises(AuthenticationError):
                provider.decrypt(key, nonce, bad, aad)
            room = memoryview(bytearray(max(0, len(bad) - aead.TAG_SIZE)))
            with pytest.raises(AuthenticationError):
                provider.decrypt_into(key, nonce, bad, aad, room)
        with pytest.raises(AuthenticationError):
            provider.decrypt(key, nonce, sealed_bytes, aad + b"\0")
        with pytest.raises(AuthenticationError):
            provider.decrypt(key, nonce[:-1] + bytes((nonce[-1] ^ 1,)), sealed_bytes, aad)
        with pytest.raises(AuthenticationError):
            provider.decrypt(key[:-1] + bytes((key[-1] ^ 1,)), nonce, sealed_bytes, aad)


@settings(max_examples=30)
@given(KEY, st.binary(max_size=500), st.integers(0, 511))
def test_signing_providers_agree(seed: bytes, message: bytes, bit: int) -> None:
    providers = (signing.PyCryptodome(), signing.Cryptography())
    public = providers[0].public(seed)
    signature = providers[0].sign(seed, message)
    assert (len(public), len(signature)) == (signing.PUBLIC_SIZE, signing.SIGNATURE_SIZE)
    assert (providers[1].public(seed), providers[1].sign(seed, message)) == (public, signature)
    changed = bytearray(signature)
    changed[bit // 8] ^= 1 << bit % 8
    other_key = bytearray(public)
    other_key[bit // 16] ^= 1 << bit % 8
    for provider in providers:
        assert provider.verify(public, message, signature)
        assert not provider.verify(public, message, bytes(changed))
        assert not provider.verify(public, message + b"\0", signature)
        assert not provider.verify(bytes(other_key), message, signature)


def test_signing_is_rfc_8032() -> None:
    """The first test vector of section 7.1."""
    seed = bytes.fromhex("9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60")
    for provider in (signing.PyCryptodome(), signing.Cryptography()):
        assert (
            provider.public(seed).hex() == "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a"
        )
        assert provider.sign(seed, b"").hex() == (
            "e5564300c360ac729086e2cc806e828a84877f1eb8e5d974d873e065224901555fb8821590a33bacc61e39701cf9b46b"
            "d25bf5f0595bbe24655141438e7a100b"
        )


# Round trips


@given(PLAIN, st.sampled_from(Kind), NONCES)
def test_blob_round_trip(plain: bytes, kind: Kind, nonce: bytes) -> None:
    epoch = EPOCH if kind is Kind.DATA else KEYS.metadata
    blob_id = KEYS.blob_id(kind, plain)
    place: dict[str, Any] = {"epoch": epoch, "repository_id": ID}
    data = blob.seal(kind, blob_id, plain, nonce=nonce, **place)
    assert len(data) <= len(plain) + blob.OVERHEAD
    assert blob.unseal(data, kind=kind, blob_id=blob_id, **place) == plain
    assert blob.unseal(memoryview(bytearray(data)), kind=kind, blob_id=blob_id, **place) == plain


@pytest.mark.parametrize("by_package", [False, True])
@given(plain=PLAIN, data=st.data())
def test_the_start_of_a_blob(by_package: bool, plain: bytes, data: st.DataObject) -> None:
    """With the C library's functions and, where they are not to be found, without."""
    place: dict[str, Any] = {"kind": Kind.DATA, "blob_id": b"i" * 32, "epoch": EPOCH, "repository_id": ID}
    sealed_bytes = memoryview(bytearray(blob.seal(plain=plain, nonce=NONCE, **place)))
    out = bytearray(data.draw(st.integers(1, len(plain))))
    spare = memoryview(bytearray(len(plain)))
    with pytest.MonkeyPatch.context() as patch:
        assert lz4block._FUNCTIONS is not None
        if by_package:
            patch.setattr(lz4block, "_FUNCTIONS", None)
        assert blob.unseal_start(sealed_bytes, memoryview(out), spare, **place) == len(plain)
        assert out == plain[: len(out)]
        with pytest.raises(ContentError):
            blob.unseal_start(sealed_bytes, memoryview(bytearray(len(plain) + 1)), spare, **place)


@given(st.binary(max_size=300), st.integers(1, 1000), st.data())
def test_no_block_writes_past_its_end(block: bytes, plain_length: int, data: st.DataObject) -> None:
    """What is no LZ4 block is refused or fills what it was given; the memory behind it stays as it was."""
    length = data.draw(st.integers(1, plain_length))
    memory = bytearray(b"\xa5" * 2000)
    with suppress(ContentError):
        lz4block.decompress(memoryview(bytearray(block)), plain_length, memoryview(memory)[:length])
    assert memory[length:] == b"\xa5" * (2000 - length)


@given(st.one_of(st.just(b""), PLAIN), st.sampled_from(SealedType))
def test_sealed_round_trip(plain: bytes, kind: SealedType) -> None:
    data = sealed.seal(kind, NAME, plain, nonce=NONCE, keys=KEYS)
    assert sealed.unseal(kind, NAME, data, KEYS) == plain


@given(st.binary(min_size=16, max_size=16), st.integers(16, 22))
def test_config_round_trip(repository_id: bytes, bits: int) -> None:
    made = Config(repository_id, 1 << bits)
    assert config.decode(config.encode(made, KEYS.config)) == made


@given(st.integers())
def test_chunk_sizes(size: int) -> None:
    assert config.valid_chunk_size(size) == (size in {1 << bits for bits in range(16, 23)})


@given(
    st.lists(st.tuples(KEY, st.integers(85, 5000), st.sampled_from(Kind)), max_size=30), st.integers(0, 100)
)
def test_pack_round_trip(items: list[tuple[bytes, int, Kind]], more: int) -> None:
    entries, end = [], 0
    for blob_id, length, kind in items:
        entries.append(pack.Entry(blob_id, end, length, kind))
        end += length
    tail = pack.encode_directory(entries, end, KEYS)
    assert pack.tail_size(tail[-pack.TRAILER_SIZE :], end + len(tail)) == len(tail)
    assert pack.parse_tail(tail, end + len(tail), KEYS) == entries
    if more:
        with pytest.raises(IntegrityError):
            pack.parse_tail(tail, end + len(tail) + more, KEYS)


def usable(name: str) -> bool:
    try:
        check_name("name", name)
    except UsageError:
        return False
    return True


TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=60)
NAMES = TEXTS.filter(usable) | st.sampled_from(
    ["...", " ", "\u202e", '"', "\\", "é" * 127, "★" * 85, "%", "-"]
)
IDS = st.none() | KEY
SIZES = st.integers(0, MAX_DISK_SIZE)
COUNTERS = st.integers(0, (1 << 63) - 1)
DISKS = st.builds(
    Disk,
    id=TEXTS,
    alias=NAMES,
    size=SIZES,
    root=IDS,
    allocated=SIZES,
    block_size=st.integers(1, 1 << 20),
    bus=st.none() | TEXTS,
    boot_order=st.none() | st.integers(0, (1 << 31) - 1),
    checkpoint=st.none() | TEXTS,
    mode=st.sampled_from(("full", "incremental")),
    full_reason=st.none() | TEXTS,
    bytes_read=COUNTERS,
    bytes_new=COUNTERS,
    bytes_stored=COUNTERS,
)
ARTIFACTS = st.builds(lambda name, found: Artifact(name=name, id=found, size=6 if found else 0), NAMES, IDS)
MANIFESTS = st.builds(
    Manifest,
    vm=st.builds(Vm, name=NAMES, id=TEXTS, engine=st.none() | TEXTS, cluster=st.none() | TEXTS),
    time=st.datetimes(timezones=st.just(UTC)),
    consistency=st.sampled_from(("crash", "filesystem", "offline")),
    disks=st.lists(DISKS, max_size=3, unique_by=lambda disk: disk.alias).map(tuple),
    artifacts=st.lists(ARTIFACTS, max_size=3, unique_by=lambda artifact: artifact.name).map(tuple),
    parent=st.none() | st.just("01KFZ9M5T0ABCDEFGHJKMNPQRS"),
    producer=TEXTS,
)


@settings(suppress_health_check=[HealthCheck.too_slow])
@given(MANIFESTS)
def test_manifest_round_trip(manifest: Manifest) -> None:
    data = manifest.to_bytes()
    assert Manifest.from_bytes(data) == manifest
    signed = point.encode(NAME, manifest, seed=b"s" * 32, nonce=NONCE, keys=KEYS)
    assert point.decode(NAME, signed, KEYS).manifest == manifest


@given(st.binary(max_size=300) | TEXTS.map(str.encode))
def test_manifest_of_anything_else(data: bytes) -> None:
    with pytest.raises(IntegrityError):
        Manifest.from_bytes(data)


# Changes


def a_pack() -> tuple[bytes, int]:
    entries = [pack.Entry(bytes((i,)) * 32, 100 * i, 100, Kind.DATA) for i in range(3)]
    return pack.encode_directory(entries, 300, KEYS), 300


def open_pack(tail: bytes, end: int = 300) -> object:
    size = end + len(tail)
    return pack.parse_tail(tail[-pack.tail_size(tail[-pack.TRAILER_SIZE :], size) :], size, KEYS)


def open_slot(data: bytes) -> object:
    found = keyslot.unwrap(data, b"k" * 32, name=SLOT_NAME, repository_id=ID)
    if found is None:
        raise AuthenticationError("does not open")
    return found


def open_config(data: bytes) -> object:
    settings = config.decode(data)
    config.authenticate(data, KEYS.config)
    return settings


@cache
def structures() -> dict[str, tuple[bytes, Callable[[bytes], object]]]:
    """One of each structure, and what opens it."""
    slot = keyslot.new_slot(keyslot.Kdf.KEY_FILE, 0, 1, b"a" * 32, NONCE, b"s" * 32, "label")
    wrapped = keyslot.wrap(
        slot, keyslot.Opened(b"m" * 32, b"s" * 32), b"k" * 32, name=SLOT_NAME, repository_id=ID
    )
    rows = unique_sorted(index.ENTRY.pack(blake3(bytes((i,))).digest(), 0, i, 99) for i in range(100))
    place: dict[str, Any] = {"epoch": EPOCH, "repository_id": ID}

    def a_blob(plain: bytes) -> tuple[bytes, Callable[[bytes], object]]:
        def unseal(data: bytes) -> bytes:
            return blob.unseal(data, kind=Kind.DATA, blob_id=b"i" * 32, **place)

        return blob.seal(Kind.DATA, b"i" * 32, plain, nonce=NONCE, **place), unseal

    return {
        "raw blob": a_blob(blake3(b"").digest(length=200)),
        "lz4 blob": a_blob(b"compressible " * 50),
        "sealed": (
            sealed.seal(SealedType.LEASE, NAME, b"{}", nonce=NONCE, keys=KEYS),
            lambda data: sealed.unseal(SealedType.LEASE, NAME, data, KEYS),
        ),
        "point": (
            point.encode(NAME, MANIFEST, seed=b"s" * 32, nonce=NONCE, keys=KEYS),
            lambda data: point.decode(NAME, data, KEYS),
        ),
        "config": (config.encode(Config(ID, 1 << 18), KEYS.config), open_config),
        "key slot": (wrapped, open_slot),
        "pack tail": (a_pack()[0], open_pack),
        "index": (
            index.encode([index.PackRef(b"p" * 32, 1)], rows, KEYS),
            lambda data: index.check(data, KEYS),
        ),
    }


NAMES_OF_STRUCTURES = tuple(structures())


@pytest.mark.parametrize("name", NAMES_OF_STRUCTURES)
def test_every_changed_byte_is_seen(name: str) -> None:
    whole, opens = structures()[name]
    opens(whole)
    for at in range(len(whole)):
        for mask in (1, 0x80, 0xFF):
            changed = bytearray(whole)
            changed[at] ^= mask
            with pytest.raises(IntegrityError):
                opens(bytes(changed))


@pytest.mark.parametrize("name", NAMES_OF_STRUCTURES)
def test_every_cut_is_seen(name: str) -> None:
    whole, opens = structures()[name]
    for size in range(len(whole)):
        with pytest.raises(IntegrityError):
            opens(whole[:size])
        if size:
            with pytest.raises(IntegrityError):
                opens(whole[size:])


@given(st.sampled_from(NAMES_OF_STRUCTURES), st.data())
def test_no_splice_is_read(name: str, data: st.DataObject) -> None:
    """Runs of bytes overwritten, cut out, put in, or taken from another structure."""
    whole, opens = structures()[name]
    start = data.draw(st.integers(0, len(whole)))
    end = data.draw(st.integers(start, len(whole)))
    other = structures()[data.draw(st.sampled_from(NAMES_OF_STRUCTURES))][0]
    patch = data.draw(st.one_of(st.binary(max_size=300), st.just(other[start:end]), st.just(other)))
    changed = whole[:start] + patch + whole[end:]
    assume(changed != whole)
    with pytest.raises(IntegrityError):
        opens(changed)


@given(st.sampled_from(NAMES_OF_STRUCTURES), st.binary(max_size=400))
def test_nothing_else_is_read(name: str, data: bytes) -> None:
    whole, opens = structures()[name]
    for made_up in (data, whole[:5] + data, whole[:5] + data + bytes(400)):
        with pytest.raises(IntegrityError):
            opens(made_up)


# Index


def a_segment(directory: str, rows: list[bytes], packs: int = 3) -> Segment:
    refs = [index.PackRef(bytes((number,)) * 32, 1 << 26) for number in range(packs)]
    data = index.encode(refs, rows, KEYS)
    index.check(data, KEYS)
    path = Path(directory, "segment.vmfi")
    path.write_bytes(data)
    return Segment(path)


PLACES = st.tuples(st.integers(0, 2), st.integers(0, (1 << 32) - 1), st.integers(0, 1 << 22))
CLOSE_IDS = st.builds(
    lambda prefix, fill, last: prefix + bytes((fill,)) * (31 - len(prefix)) + bytes((last,)),
    st.sampled_from([b"", b"\0\0\0\0", b"\xff\xff\xff\xff", b"\x80", b"\x7f\xff\xff\xff\xff"]),
    st.sampled_from([0, 1, 0x7F, 0x80, 0xFF]),
    st.integers(0, 255),
)


@settings(max_examples=60)
@given(st.dictionaries(CLOSE_IDS | KEY, PLACES, max_size=200), st.lists(CLOSE_IDS | KEY, max_size=20))
@example({bytes(32): (0, 0, 0), b"\xff" * 32: (2, (1 << 32) - 1, 1 << 22)}, [])
def test_index_is_a_dictionary(entries: dict[bytes, tuple[int, int, int]], others: list[bytes]) -> None:
    rows = unique_sorted(index.ENTRY.pack(blob_id, *place) for blob_id, place in entries.items())
    with tempfile.TemporaryDirectory() as directory:
        segment = a_segment(directory, rows)
        for blob_id, (number, offset, length) in entries.items():
            assert segment.find(blob_id) == Location(bytes((number,)) * 32, offset, length)
        for blob_id in others:
            assert (segment.find(blob_id) is None) == (blob_id not in entries)
        assert list(segment.rows()) == rows


@settings(max_examples=60)
@given(st.lists(st.tuples(KEY, PLACES), min_size=1, max_size=30, unique_by=lambda item: item[0]), st.data())
def test_index_is_not_misled_by_ids_inside_rows(
    items: list[tuple[bytes, tuple[int, int, int]]], data: st.DataObject
) -> None:
    """Ids that stand, out of line, in the rows of other ids: in the index or not."""
    table = [index.ENTRY.pack(blob_id, *place) for blob_id, place in items]
    inside = [row[at : at + 32] for row in table for at in range(1, 13)]
    added = data.draw(st.lists(st.tuples(st.sampled_from(inside), PLACES), max_size=10))
    entries = dict(items) | dict(added)
    rows = unique_sorted(index.ENTRY.pack(blob_id, *place) for blob_id, place in entries.items())
    whole = b"".join(rows)
    with tempfile.TemporaryDirectory() as directory:
        segment = a_segment(directory, rows)
        for blob_id in {whole[at : at + 32] for at in range(len(whole) - 31)} | set(entries):
            found = segment.find(blob_id)
            if blob_id in entries:
                number, offset, length = entries[blob_id]
                assert found == Location(bytes((number,)) * 32, offset, length)
            else:
                assert found is None


def test_index_of_many_entries() -> None:
    """Large enough for several fan-out bits, with a bucket that holds far more than its share."""
    ids = [blake3(struct.pack("<I", i)).digest() for i in range(4000)]
    ids += [b"\x42\x42\x42\x42" + blake3(struct.pack("<I", i)).digest()[4:] for i in range(1000)]
    rows = unique_sorted(index.ENTRY.pack(blob_id, 1, i, 100) for i, blob_id in enumerate(ids))
    with tempfile.TemporaryDirectory() as directory:
        segment = a_segment(directory, rows)
        assert segment.header.fanout_bits == index.fanout_bits(5000) == 7
        for i, blob_id in enumerate(ids):
            assert segment.find(blob_id) == Location(b"\x01" * 32, i, 100)
        for i in range(4000, 8000):
            assert segment.find(blake3(struct.pack("<I", i)).digest()) is None


@given(st.integers(0, 1 << 40))
def test_fanout_bits(entries: int) -> None:
    bits = index.fanout_bits(entries)
    assert 0 <= bits <= index.MAX_FANOUT_BITS
    if entries < 64:
        assert bits == 0
    elif bits < index.MAX_FANOUT_BITS:
        assert 32 <= entries / (1 << bits) <= 128


@given(st.lists(KEY, min_size=2, max_size=20), st.integers(0, 24))
def test_buckets_are_first_bits(ids: list[bytes], bits: int) -> None:
    for blob_id in ids:
        text = "".join(f"{byte:08b}" for byte in blob_id)
        assert index.bucket(blob_id, bits) == int("0" + text[:bits], 2)
    assert all(index.bucket(a, bits) <= index.bucket(b, bits) for a, b in pairwise(sorted(ids)))


# Map


@given(st.dictionaries(st.integers(0, 255), KEY, max_size=256))
def test_node_children(children: dict[int, bytes]) -> None:
    content = bytearray(node.EMPTY)
    for slot, child in children.items():
        content[slot * 32 : slot * 32 + 32] = child
    expected = [None if children.get(slot, node.NULL) == node.NULL else children[slot] for slot in range(256)]
    assert node.children(content) == expected
    assert [node.child(bytes(content), slot) for slot in range(256)] == expected
    assert node.count(content) == sum(child is not None for child in expected)


@given(st.integers(0, 1 << 60), st.integers(16, 22))
@example(256 << 18, 18)
@example((256 << 18) + 1, 18)
@example(1 << 60, 16)
def test_levels(size: int, bits: int) -> None:
    chunks = node.chunk_count(size, 1 << bits)
    assert (chunks - 1) << bits < size <= chunks << bits or chunks == size == 0
    levels = node.levels(size, 1 << bits)
    assert levels >= 1
    assert 256**levels >= chunks
    assert levels == 1 or 256 ** (levels - 1) < chunks
