"""Every parser checks in one order, and each check raises an error of its own.

The order: length of the fixed part, magic, version, the length that the structure states, authentication,
content. Each structure is made with a growing pile of faults; the first in the order must be the one told.
"""

from __future__ import annotations

import struct
import tracemalloc
from collections.abc import Callable
from typing import Any

import lz4.block
import pytest
from blake3 import blake3

from vmfs.format import aead, blob, config, index, keyslot, node, pack, point, sealed, signing
from vmfs.format.config import Config
from vmfs.format.errors import (
    AuthenticationError,
    ContentError,
    IntegrityError,
    LengthError,
    MagicError,
    VersionError,
)
from vmfs.format.keys import METADATA_EPOCH, Epoch, Keys, Kind, SealedType, blob_key, derive_keys

ID = b"repository id 16"
KEYS = derive_keys(b"m" * 32, ID)
NONCE = b"nonce 12 byt"
ROOM = memoryview(bytearray(blob.MAX_PLAIN))
SPARE = memoryview(bytearray(blob.MAX_PLAIN))
EPOCH = Epoch(b"epoch id", b"e" * 32)
NAME = "points/01KFZ9M5T0ABCDEFGHJKMNPQRS"

Edit = Callable[[bytes], bytes]


def put(offset: int, value: bytes) -> Edit:
    """Overwrite bytes; a negative offset counts from the end."""

    def edit(data: bytes) -> bytes:
        at = offset % len(data)
        return data[:at] + value + data[at + len(value) :]

    return edit


def cut(size: int) -> Edit:
    return lambda data: data[:size]


def cut_end(size: int) -> Edit:
    return lambda data: data[:-size]


def flip_last(data: bytes) -> bytes:
    return data[:-1] + bytes((data[-1] ^ 1,))


def in_order(
    make: Callable[[bool], bytes], parse: Callable[[bytes], object], edits: list[tuple[Edit, type]]
) -> None:
    """`make(True)` has a content fault. `edits` are further faults, the one that is told first last."""
    parse(make(False))
    with pytest.raises(ContentError):
        parse(make(True))
    data = make(True)
    for edit, error in edits:
        data = edit(data)
        with pytest.raises(IntegrityError) as caught:
            parse(data)
        assert caught.type is error, edit


# Blobs


def a_blob(
    *,
    kind: int = Kind.DATA,
    codec: int = 0,
    reserved: int = 0,
    epoch: Epoch = EPOCH,
    blob_id: bytes = b"i" * 32,
    plain: int | None = None,
    stored: bytes = b"hello",
) -> bytes:
    """A blob that is authentic and says whatever it is told to."""
    length = len(stored) if plain is None else plain
    header = blob.HEADER.pack(
        *(b"VMFB", 1, kind, codec, reserved, epoch.id, blob_id), *(length, len(stored), NONCE)
    )
    return header + aead.provider.encrypt(blob_key(epoch, kind, blob_id), NONCE, stored, header + ID)


def open_blob(
    data: bytes,
    *,
    kind: int = Kind.DATA,
    blob_id: bytes = b"i" * 32,
    epoch: Epoch = EPOCH,
    repository_id: bytes = ID,
) -> bytes:
    """By both ways, which must agree."""
    place: dict[str, Any] = {"kind": kind, "blob_id": blob_id, "epoch": epoch, "repository_id": repository_id}
    out = ROOM[: int.from_bytes(data[48:52], "little")]
    try:
        plain = blob.unseal(data, **place)
    except IntegrityError as error:
        with pytest.raises(type(error)):
            blob.unseal_start(memoryview(bytearray(data)), out, SPARE, **place)
        raise
    assert blob.unseal_start(memoryview(bytearray(data)), out, SPARE, **place) == len(plain)
    assert out == plain
    return plain


def test_blob_order() -> None:
    in_order(
        lambda bad: a_blob(codec=9 if bad else 0),
        open_blob,
        [
            (flip_last, AuthenticationError),
            (cut_end(1), LengthError),
            (put(4, b"\2"), VersionError),
            (put(0, b"X"), MagicError),
            (cut(67), LengthError),
        ],
    )


@pytest.mark.parametrize(
    "data",
    [
        a_blob(reserved=1),
        a_blob(plain=4),
        a_blob(plain=6),
        a_blob(plain=0),
        a_blob(plain=0, stored=b""),
        a_blob(stored=b"", plain=1),
        a_blob(codec=2),
        a_blob(plain=(4 << 20) + 1),
        a_blob(stored=bytes((4 << 20) + 1)),
        a_blob(codec=1, stored=b"\xff" * 100, plain=5000),
        a_blob(codec=1, stored=lz4.block.compress(bytes(1000), store_size=False), plain=999),
        a_blob(codec=1, stored=lz4.block.compress(bytes(1000), store_size=False), plain=1001),
        a_blob(codec=1, stored=b"\x50hello", plain=5),
        a_blob(epoch=Epoch(METADATA_EPOCH, EPOCH.root)),
    ],
)
def test_blob_content(data: bytes) -> None:
    with pytest.raises(ContentError):
        open_blob(data, epoch=Epoch(data[8:16], EPOCH.root))


@pytest.mark.parametrize(
    ("kind", "epoch"),
    [(Kind.NODE, EPOCH), (Kind.ARTIFACT, EPOCH), (0, EPOCH), (4, KEYS.metadata), (255, KEYS.metadata)],
)
def test_blob_kind_and_epoch_go_together(kind: int, epoch: Epoch) -> None:
    with pytest.raises(ContentError):
        open_blob(a_blob(kind=kind, epoch=epoch), kind=kind, epoch=epoch)


def test_blob_in_another_place() -> None:
    data = a_blob()
    others: tuple[Callable[[], bytes], ...] = (
        lambda: open_blob(data, kind=Kind.NODE),
        lambda: open_blob(data, blob_id=b"j" * 32),
        lambda: open_blob(data, epoch=Epoch(b"another ", EPOCH.root)),
        lambda: open_blob(data, epoch=Epoch(EPOCH.id, b"f" * 32)),
        lambda: open_blob(data, repository_id=bytes(16)),
        # The header says what is asked for, and the seal does not.
        lambda: open_blob(put(16, b"j" * 32)(data), blob_id=b"j" * 32),
        lambda: open_blob(put(5, b"\2")(data), kind=Kind.NODE),
        lambda: open_blob(put(8, b"another ")(data), epoch=Epoch(b"another ", EPOCH.root)),
    )
    for other in others:
        with pytest.raises(AuthenticationError):
            other()


@pytest.mark.parametrize("plain", [1 << 31, (1 << 32) - 1])
def test_blob_that_lies_is_no_memory_bomb(plain: int) -> None:
    stored = lz4.block.compress(bytes(1 << 20), store_size=False)
    data = a_blob(codec=1, stored=stored, plain=plain)
    tracemalloc.start()
    try:
        with pytest.raises(ContentError):
            open_blob(data)
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("size", [0, (4 << 20) + 1])
def test_blob_of_impossible_size_is_not_made(size: int) -> None:
    with pytest.raises(ValueError, match="a blob holds 1 to"):
        blob.seal(Kind.DATA, b"i" * 32, bytes(size), epoch=EPOCH, nonce=NONCE, repository_id=ID)


def test_compression_only_where_it_pays() -> None:
    noise = blake3(b"noise").digest(length=15 * 4096)
    for plain, codec in ((noise, 0), (noise + bytes(8192), 1), (noise + bytes(3000), 0), (b"", 0), (b"a", 0)):
        assert blob.compress(plain)[0] == codec


# Sealed objects


def a_sealed(
    *,
    kind: int = SealedType.POINT,
    key: SealedType = SealedType.POINT,
    codec: int = 0,
    reserved: int = 0,
    length: int | None = None,
    stored: bytes = b"hello",
) -> bytes:
    header = sealed.HEADER.pack(
        *(b"VMFS", 1, kind, codec, reserved, len(stored) if length is None else length, NONCE)
    )
    own_key = blake3(NAME.encode(), key=KEYS.sealed[key]).digest()
    return header + aead.provider.encrypt(own_key, NONCE, stored, header + ID + NAME.encode())


def open_sealed(data: bytes) -> bytes:
    return sealed.unseal(SealedType.POINT, NAME, data, KEYS)


def test_sealed_order() -> None:
    in_order(
        lambda bad: a_sealed(reserved=bad),
        open_sealed,
        [
            (flip_last, AuthenticationError),
            (put(4, b"\2"), VersionError),
            (put(0, b"X"), MagicError),
            (cut(39), LengthError),
        ],
    )


@pytest.mark.parametrize(
    "data",
    [
        a_sealed(kind=SealedType.NOTE),
        a_sealed(kind=0),
        a_sealed(codec=2),
        a_sealed(length=4),
        a_sealed(length=6),
        a_sealed(length=(64 << 20) + 1),
        a_sealed(codec=1, stored=b"\xff" * 100, length=5000),
        a_sealed(codec=1, stored=lz4.block.compress(bytes(99), store_size=False), length=(1 << 32) - 1),
        a_sealed(codec=1, stored=lz4.block.compress(bytes(99), store_size=False), length=98),
        a_sealed(codec=1, stored=b"", length=0),
    ],
)
def test_sealed_content(data: bytes) -> None:
    with pytest.raises(ContentError, match=NAME):
        open_sealed(data)


def test_sealed_opens_only_as_what_it_is() -> None:
    data = sealed.seal(SealedType.POINT, NAME, b"hello", nonce=NONCE, keys=KEYS)
    assert open_sealed(data) == b"hello"
    others: list[tuple[SealedType, str, Keys]] = [
        (kind, NAME, KEYS) for kind in SealedType if kind is not SealedType.POINT
    ]
    others += [
        (SealedType.POINT, NAME[:-1], KEYS),
        (SealedType.POINT, NAME.replace("points", "notes"), KEYS),
        (SealedType.POINT, NAME, derive_keys(b"m" * 32, bytes(16))),
        (SealedType.POINT, NAME, derive_keys(b"n" * 32, ID)),
    ]
    for kind, name, keys in others:
        with pytest.raises(AuthenticationError, match=name):
            sealed.unseal(kind, name, data, keys)
        with pytest.raises(AuthenticationError, match=name):
            sealed.unseal(kind, name, put(5, bytes((kind,)))(data), keys)


def test_sealed_of_impossible_size_is_not_made() -> None:
    with pytest.raises(ValueError, match="at most"):
        sealed.seal(SealedType.NOTE, "notes/x", bytes((64 << 20) + 1), nonce=NONCE, keys=KEYS)


# Config


def a_config(edit: Edit = bytes) -> bytes:
    body = edit(config.encode(Config(ID, 1 << 18), KEYS.config))[:64]
    return body + blake3(body).digest()


def test_config_order() -> None:
    in_order(
        lambda bad: a_config(put(7, bytes((bad,)))),
        config.decode,
        [
            (flip_last, AuthenticationError),
            (cut_end(1), LengthError),
            (put(0, b"X"), MagicError),
            (cut(7), LengthError),
        ],
    )


@pytest.mark.parametrize(
    "edit",
    [
        put(4, b"\0"),
        put(5, b"\2"),
        put(6, b"\2"),
        put(7, b"\1"),
        put(28, b"\1"),
        *(
            put(24, struct.pack("<I", size))
            for size in (0, 1, 512, 32 << 10, 65535, 3 << 16, 8 << 20, 1 << 31)
        ),
    ],
)
def test_config_content(edit: Edit) -> None:
    with pytest.raises(ContentError):
        config.decode(a_config(edit))


def test_config_of_a_later_version() -> None:
    later = a_config(put(4, b"\2"))
    with pytest.raises(VersionError, match="use a later vmfs"):
        config.decode(later)
    longer = b"VMFC\x07" + bytes(range(200))
    with pytest.raises(VersionError, match="version 7"):
        config.decode(longer + blake3(longer).digest())
    # A damaged version byte is no later version.
    with pytest.raises(AuthenticationError):
        config.decode(put(4, b"\2")(a_config()))


def test_config_is_authenticated() -> None:
    data = a_config()
    config.authenticate(data, KEYS.config)
    for other in (a_config(put(24, struct.pack("<I", 1 << 16))), a_config(put(33, b"x"))):
        config.decode(other)
        with pytest.raises(AuthenticationError):
            config.authenticate(other, KEYS.config)
    with pytest.raises(AuthenticationError):
        config.authenticate(data, KEYS.index)


# Packs


def a_tail(edit: Edit = bytes, entries: tuple[tuple[int, int, int, bytes], ...] = ()) -> bytes:
    """Directory and trailer over blobs of 100 and 200 bytes, authentic, after `edit`. Entries are (offset,
    length, kind, reserved)."""
    rows = entries or ((0, 100, 1, b"\0\0\0"), (100, 200, 3, b"\0\0\0"))
    table = b"".join(pack.ENTRY.pack(bytes((i,)) * 32, *row) for i, row in enumerate(rows))
    body = edit(table + pack.TRAILER.pack(b"VMFP", 1, b"\0\0\0", 300, len(rows)))
    return body + blake3(body + ID, key=KEYS.directory).digest()


def open_tail(data: bytes) -> list[pack.Entry]:
    size = 300 + 2 * 44 + 56
    assert pack.tail_size(data[-56:], size) == 2 * 44 + 56
    return pack.parse_tail(data, size, KEYS)


def test_pack_order() -> None:
    in_order(
        lambda bad: a_tail(put(-19, bytes((bad,)))),
        open_tail,
        [
            (flip_last, AuthenticationError),
            (put(-40, b"\3"), LengthError),
            (put(-52, b"\2"), VersionError),
            (put(-56, b"X"), MagicError),
            (cut(55), LengthError),
        ],
    )


@pytest.mark.parametrize(
    "entries",
    [
        ((0, 100, 0, b"\0\0\0"), (100, 200, 1, b"\0\0\0")),
        ((0, 100, 4, b"\0\0\0"), (100, 200, 1, b"\0\0\0")),
        ((0, 100, 1, b"\0\0\0"), (100, 200, 1, b"\0\0\1")),
        ((0, 100, 1, b"\0\0\0"), (101, 199, 1, b"\0\0\0")),
        ((0, 100, 1, b"\0\0\0"), (99, 201, 1, b"\0\0\0")),
        ((100, 200, 1, b"\0\0\0"), (0, 100, 1, b"\0\0\0")),
        ((1, 100, 1, b"\0\0\0"), (101, 199, 1, b"\0\0\0")),
        ((0, 100, 1, b"\0\0\0"), (100, 199, 1, b"\0\0\0")),
        ((0, 100, 1, b"\0\0\0"), (100, 201, 1, b"\0\0\0")),
        ((0, 84, 1, b"\0\0\0"), (84, 216, 1, b"\0\0\0")),
        ((0, 300, 1, b"\0\0\0"), (300, 0, 1, b"\0\0\0")),
        ((0, (4 << 20) + 85, 1, b"\0\0\0"), (300, 0, 1, b"\0\0\0")),
    ],
)
def test_pack_content(entries: tuple[tuple[int, int, int, bytes], ...]) -> None:
    with pytest.raises(ContentError):
        open_tail(a_tail(entries=entries))


@pytest.mark.parametrize("size", [0, 55, 443, 445, 1 << 40])
def test_pack_of_another_size(size: int) -> None:
    with pytest.raises(LengthError):
        pack.tail_size(a_tail()[-56:], size)
    with pytest.raises(LengthError):
        pack.parse_tail(a_tail(), size, KEYS)


@pytest.mark.parametrize("count", [65_537, 1 << 32, (1 << 64) - 1])
def test_pack_directory_is_bounded(count: int) -> None:
    """What a store says before it is authenticated must not make a reader allocate much."""
    trailer = pack.TRAILER.pack(b"VMFP", 1, b"\0\0\0", 300, count) + bytes(32)
    with pytest.raises(LengthError):
        pack.tail_size(trailer, 300 + 44 * count + 56)


def test_pack_tail_of_another_length() -> None:
    for tail in (a_tail()[44:], a_tail()[1:], bytes(44) + a_tail()):
        with pytest.raises(LengthError):
            pack.parse_tail(tail, 300 + 2 * 44 + 56, KEYS)


# Indexes

IDS = tuple(sorted(blake3(bytes((number,))).digest() for number in range(200)))


def an_index(
    edit: Edit = bytes,
    *,
    ids: tuple[bytes, ...] = IDS,
    number: int = 0,
    length: int = 100,
    counts: tuple[int, ...] | None = None,
) -> bytes:
    """An index with 4 buckets, authentic, after `edit`. `number` and `length` are those of the last entry;
    `counts` the fan-out."""
    own = tuple(sum(blob_id[0] >> 6 <= bucket for blob_id in ids) for bucket in range(4))
    head = index.HEADER.pack(b"VMFI", 1, 2, 0, 1, 0, len(ids)) + index.PACK.pack(b"p" * 32, 4096)
    rows = [index.ENTRY.pack(blob_id, 0, 7, 100) for blob_id in ids]
    rows[-1] = index.ENTRY.pack(ids[-1], number, 7, length)
    body = edit(head + struct.pack("<4I", *(counts or own)) + b"".join(rows))
    return body + blake3(body + ID, key=KEYS.index).digest()


def open_index(data: bytes) -> index.Header:
    return index.check(data, KEYS)


def test_index_order() -> None:
    in_order(
        lambda bad: an_index(put(6, bytes((bad,)))),
        open_index,
        [
            (flip_last, AuthenticationError),
            (cut_end(1), LengthError),
            (put(4, b"\2"), VersionError),
            (put(0, b"X"), MagicError),
            (cut(23), LengthError),
        ],
    )


def _swapped(first: int) -> tuple[bytes, ...]:
    return (*IDS[:first], IDS[first + 1], IDS[first], *IDS[first + 2 :])


@pytest.mark.parametrize(
    "data",
    [
        an_index(put(12, b"\1")),
        an_index(ids=_swapped(0)),
        an_index(ids=_swapped(198)),
        an_index(ids=(*IDS[:-1], IDS[-2])),
        an_index(number=1),
        an_index(number=(1 << 32) - 1),
        an_index(length=(4 << 20) + 85),
        an_index(counts=(0, 0, 0, 0)),
        an_index(counts=(0, 0, 0, 199)),
        an_index(counts=(0, 0, 0, 201)),
        an_index(counts=(200, 200, 200, 200)),
        an_index(counts=(200, 0, 0, 200)),
        an_index(counts=(1 << 31, 1 << 31, 1 << 31, 1 << 31)),
    ],
)
def test_index_content(data: bytes) -> None:
    with pytest.raises(ContentError):
        open_index(data)


@pytest.mark.parametrize("bits", [*range(2), *range(3, 256)])
def test_index_with_another_fanout(bits: int) -> None:
    with pytest.raises(LengthError):
        open_index(an_index(put(5, bytes((bits,)))))


@pytest.mark.parametrize(("packs", "entries"), [((1 << 32) - 1, 0), (0, (1 << 64) - 1), (1, 201), (0, 200)])
def test_index_with_huge_counts(packs: int, entries: int) -> None:
    with pytest.raises(LengthError):
        open_index(
            an_index(lambda data: struct.pack("<4sBBHIIQ", b"VMFI", 1, 2, 0, packs, 0, entries) + data[24:])
        )


def test_index_needs_no_entries() -> None:
    assert open_index(index.encode([], [], KEYS)) == index.Header(0, 0, 0)


# Nodes, points


@pytest.mark.parametrize("size", [0, 32, 8191, 8193])
def test_node_length(size: int) -> None:
    assert node.check(bytes(8192)) == node.EMPTY
    with pytest.raises(LengthError):
        node.check(bytes(size))


SEED = b"s" * 32
MANIFEST = (
    b'{"artifacts":[],"consistency":"crash","disks":[],"parent":null,"producer":"","time":'
    b'"2026-11-20T10:00:00.000000+00:00","vm":{"cluster":null,"engine":null,"id":"1","name":"v"}}'
)


def a_point(body: bytes = MANIFEST, name: str = NAME, repository_id: bytes = ID, edit: Edit = bytes) -> bytes:
    """Sealed under NAME, whatever name it was signed for."""
    message = b"vmfs v1 point\0" + repository_id + name.encode() + b"\0" + body
    plain = signing.provider.public(SEED) + signing.provider.sign(SEED, message) + body
    return sealed.seal(SealedType.POINT, NAME, edit(plain), nonce=NONCE, keys=KEYS)


def test_point_order() -> None:
    in_order(
        lambda bad: a_point(b"{}" if bad else MANIFEST),
        lambda data: point.decode(NAME, data, KEYS),
        [
            (lambda _: a_point(b"{}", edit=flip_last), AuthenticationError),
            (lambda _: a_point(b"", edit=cut(95)), LengthError),
        ],
    )


def test_point_signature_binds_its_place() -> None:
    assert point.decode(NAME, a_point(), KEYS).signer == signing.provider.public(SEED)
    for data in (
        a_point(name=NAME[:-1]),
        a_point(name="points/01KFZ9M5T0ABCDEFGHJKMNPQRT"),
        a_point(repository_id=bytes(16)),
        a_point(edit=put(0, signing.provider.public(b"t" * 32))),
        a_point(edit=put(0, bytes(32))),
        a_point(edit=put(0, b"\xff" * 32)),
        a_point(edit=put(64, b"\xff" * 32)),
    ):
        with pytest.raises(AuthenticationError, match="signature"):
            point.decode(NAME, data, KEYS)


def test_key_slot_sizes() -> None:
    """The sizes that docs/format.md names."""
    assert (keyslot.HEAD.size, blob.HEADER.size, blob.OVERHEAD, sealed.HEADER.size) == (96, 68, 84, 24)
    assert (config.SIZE, pack.ENTRY.size, pack.TRAILER_SIZE) == (96, 44, 56)
    assert (index.HEADER.size, index.PACK.size, index.ENTRY.size) == (24, 40, 44)
