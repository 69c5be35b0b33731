"""File lists and notes: any list comes back as it was, and nothing that is not one is taken for one."""

from __future__ import annotations

import json
import random
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vmfs.errors import IntegrityError, LengthError, UsageError
from vmfs.format import filelist, note
from vmfs.format.filelist import Entry
from vmfs.format.keys import Keys, derive_keys
from vmfs.format.note import Note
from vmfs.repo.filelists import FileLists, Ground, Mount, Problem, VolumeList

KEYS = derive_keys(b"m" * 32, b"r" * 16)
NAME = "notes/01M7YBZBZBWKTZ6ZNGY34C6FVZ/01M7YBZBZH11KPFYFXQMXV3BN8"
NOW = datetime(2026, 11, 20, 10, 0, tzinfo=UTC)

names = st.binary(min_size=1, max_size=12).filter(filelist.valid_name)
directories = st.lists(names, max_size=3).map(b"/".join)
times = st.integers(-filelist.MAX_SIZE, filelist.MAX_SIZE)
numbers = st.integers(0, filelist.MAX_ID)
facts_of_a_file = st.tuples(numbers, numbers, numbers, st.integers(0, filelist.MAX_SIZE), times, times)
trees = st.dictionaries(
    directories, st.dictionaries(names, facts_of_a_file, min_size=1, max_size=8), min_size=1, max_size=6
)


def entries_of(tree: dict[bytes, dict[bytes, Any]]) -> list[Entry]:
    return [
        filelist.check(Entry(directory, name, *facts))
        for directory, files in sorted(tree.items())
        for name, facts in sorted(files.items())
    ]


@given(trees)
def test_a_piece_comes_back(tree: dict[bytes, dict[bytes, Any]]) -> None:
    entries = entries_of(tree)
    data = filelist.encode(entries)
    assert filelist.decode(data) == entries
    assert filelist.encode(filelist.decode(data)) == data


@given(trees, st.data())
def test_no_cut_or_changed_piece_is_more_than_an_error(
    tree: dict[bytes, dict[bytes, Any]], data: Any
) -> None:
    entries = entries_of(tree)
    piece = bytearray(filelist.encode(entries))
    try:
        # At the end of a directory it is a shorter list: how long a blob is, its header says.
        rest = filelist.decode(bytes(piece[: data.draw(st.integers(0, len(piece) - 1))]))
        assert 0 < len(rest) < len(entries)
        assert rest == entries[: len(rest)]
        assert entries[len(rest)].directory != rest[-1].directory
    except IntegrityError:
        pass
    piece[data.draw(st.integers(0, len(piece) - 1))] ^= data.draw(st.integers(1, 255))
    try:
        entries = filelist.decode(bytes(piece))
    except IntegrityError:
        return
    # What still parses is a list like any other: it says nothing that no list may say.
    for entry in entries:
        filelist.check(entry)


@given(st.binary(max_size=200))
def test_noise_is_no_piece(noise: bytes) -> None:
    with pytest.raises(IntegrityError):
        filelist.decode(filelist.MAGIC + b"\x01\0\0\0" + noise[:8])
    with pytest.raises(IntegrityError):
        filelist.decode(noise)


@pytest.mark.parametrize("name", [b"", b".", b"..", b"a/b", b"a\0b", b"x" * 4097])
def test_names_that_cannot_be_are_refused_both_ways(name: bytes) -> None:
    entry = Entry(b"etc", name, 0o100644, 0, 0, 1, 2, 3)
    with pytest.raises(UsageError):
        filelist.check(entry)
    with pytest.raises(IntegrityError):
        filelist.decode(filelist.encode([entry]))
    if name:
        with pytest.raises(IntegrityError):
            filelist.decode(filelist.encode([Entry(name + b"/x", b"y", 0, 0, 0, 0, 0, 0)]) + b"\0")


def test_entries_out_of_order_or_twice_are_refused() -> None:
    one, other = (Entry(b"", name, 0, 0, 0, 0, 0, 0) for name in (b"a", b"b"))
    for wrong in ([other, one], [one, one]):
        with pytest.raises(IntegrityError):
            filelist.decode(filelist.encode(wrong))


def test_a_changed_file_changes_one_piece_and_a_new_one_few() -> None:
    choose = random.Random(5)  # noqa: S311
    entries = [
        Entry(
            b"d%03d" % (number // 40),
            b"%07x" % choose.getrandbits(28),
            0o100644,
            0,
            0,
            number,
            number,
            number,
        )
        for number in range(20_000)
    ]
    entries.sort(key=lambda entry: (entry.directory, entry.name))
    before = [filelist.encode(run) for run in filelist.cut(entries)]
    assert 20 < len(before) < 200
    assert [entry for piece in before for entry in filelist.decode(piece)] == entries
    changed = [*entries]
    changed[9_000] = changed[9_000]._replace(size=1)
    after = [filelist.encode(run) for run in filelist.cut(changed)]
    assert len(set(after) - set(before)) == 1
    changed.insert(9_001, changed[9_000]._replace(name=changed[9_000].name + b"x"))
    assert len({filelist.encode(run) for run in filelist.cut(changed)} - set(before)) <= 3


def test_no_piece_is_larger_than_a_blob_may_be() -> None:
    deep = b"/".join([b"n" * 4000] * 8)
    entries = (Entry(deep + b"/%06d" % number, b"f", 0, 0, 0, 0, 0, 0) for number in range(200))
    assert max(len(filelist.encode(run)) for run in filelist.cut(entries)) < 4 << 20


@given(st.binary(max_size=40))
def test_any_name_is_text_and_comes_back(name: bytes) -> None:
    text = filelist.to_text(name)
    text.encode()
    assert filelist.to_bytes(text) == name


@given(st.text(max_size=20), st.text(max_size=20))
def test_texts_of_names_are_as_different_as_the_names(one: str, other: str) -> None:
    left, right = (text.encode("utf-8", "surrogatepass") for text in (one, other))
    assert (filelist.to_text(left) == filelist.to_text(right)) is (left == right)


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63) + 1, 2**63 - 1)
    | st.text(st.characters(codec="utf-8"), max_size=9),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.text(st.characters(codec="utf-8"), max_size=5), inner, max_size=3)
    ),
    max_leaves=8,
)


@given(
    st.dictionaries(st.text(st.characters(codec="utf-8"), max_size=5), json_values, max_size=4),
    st.lists(st.binary(min_size=32, max_size=32), max_size=3),
)
def test_a_note_comes_back(facts: dict[str, Any], blobs: list[bytes]) -> None:
    made = Note(kind="files", time=NOW, facts=facts, blobs=tuple(blobs), producer="vmfs 1")
    data = note.encode(NAME, made, seed=b"s" * 32, nonce=b"n" * 12, keys=KEYS)
    assert note.decode(NAME, data, KEYS).note == made


@settings(max_examples=300)
@given(st.data())
def test_a_changed_note_is_damaged_wherever_it_is_changed(data: Any) -> None:
    made = Note(
        kind="boot", time=NOW, facts={"ok": True, "n": [1, None]}, blobs=(b"b" * 32,), producer="vmfs 1"
    )
    whole = bytearray(note.encode(NAME, made, seed=b"s" * 32, nonce=b"n" * 12, keys=KEYS))
    whole[data.draw(st.integers(0, len(whole) - 1))] ^= data.draw(st.integers(1, 255))
    with pytest.raises(IntegrityError):
        note.decode(NAME, bytes(whole), KEYS)


@given(st.integers(0, 400), st.integers(0, 255))
def test_a_note_whose_writer_lies_is_refused_or_reads_as_it_is_written(at: int, value: int) -> None:
    body = bytearray(
        Note(kind="boot", time=NOW, facts={"ok": True}, blobs=(b"b" * 32,), producer="vmfs 1").to_bytes()
    )
    body[at % len(body)] = value
    try:
        read = Note.from_bytes(bytes(body))
    except IntegrityError:
        return
    assert read.to_bytes() == bytes(body)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"\xff\xff\xff\xff{}",
        b"\1\0\0\0short",
        b"\0\0\0\0[]",
        b"\0\0\0\0" + b"[" * 100_000,
        b'\0\0\0\0{"facts":{"a":1.5},"kind":"x","producer":"","time":"2026-11-20T10:00:00.000000+00:00"}',
        b'\0\0\0\0{"facts":{"a":'
        + b"[" * 40
        + b"]" * 40
        + b'},"kind":"x","producer":"","time":"2026-11-20T10:00:00.000000+00:00"}',
        b'\0\0\0\0{"facts":{},"kind":"X","producer":"","time":"2026-11-20T10:00:00.000000+00:00"}',
        b'\0\0\0\0{"facts":{},"kind":"x","producer":"","time":"2026-11-20T10:00:00"}',
        b'\0\0\0\0{"facts":{},"kind":"x","producer":"","time":"2026-11-20T10:00:00.000000+00:00","z":1}',
        b'\0\0\0\0{"kind":"x","facts":{},"producer":"","time":"2026-11-20T10:00:00.000000+00:00"}',
    ],
)
def test_notes_that_make_no_sense(body: bytes) -> None:
    with pytest.raises(IntegrityError):
        Note.from_bytes(body)


def test_a_note_opens_under_its_own_name_only() -> None:
    made = Note(kind="boot", time=NOW, facts={})
    data = note.encode(NAME, made, seed=b"s" * 32, nonce=b"n" * 12, keys=KEYS)
    for other in (
        NAME[:-1] + "9",
        NAME.replace("notes/01M7", "notes/01M8"),
        "points/01M7YBZBZBWKTZ6ZNGY34C6FVZ",
    ):
        with pytest.raises(IntegrityError):
            note.decode(other, data, KEYS)
    stranger: Keys = derive_keys(b"m" * 32, b"q" * 16)
    with pytest.raises(IntegrityError):
        note.decode(NAME, data, stranger)


@pytest.mark.parametrize(
    "facts", [{"a": 1.5}, {"a": b"x"}, {"a": 1 << 63}, {1: "a"}, {"a": "\ud800"}, {"a": object()}]
)
def test_facts_that_cannot_be_kept_are_refused(facts: Any) -> None:
    with pytest.raises(UsageError):
        Note(kind="boot", time=NOW, facts=facts).to_bytes()


VOLUME = VolumeList(
    key="0/p1",
    name="vda-p1",
    kind="partition",
    type="ext4",
    label="root",
    mounts=(Mount("/", ""), Mount("/home", "@home")),
    ground=(Ground(0, 1 << 20, 1 << 30),),
    pieces=(b"p" * 32, b"q" * 32),
    entries=7,
    listed=True,
    problems=(Problem("/x", "it cannot be read"),),
    problem_count=1,
    warnings=("the journal is to be replayed",),
    walked="01M7YBZBZBWKTZ6ZNGY34C6FVZ",
)


def test_the_facts_of_file_lists_come_back() -> None:
    other = VolumeList(key="0/p2", name="vda-p2", kind="partition", error="no reader", walked=VOLUME.walked)
    third = VolumeList(key="0/p3", name="p3", kind="partition", pieces=(b"r" * 32,), listed=True, walked="x")
    lists = FileLists(volumes=(VOLUME, other, third), warnings=("something",))
    facts, blobs = lists.to_facts()
    assert blobs == (b"p" * 32, b"q" * 32, b"r" * 32)
    assert FileLists.from_facts(json.loads(json.dumps(facts)), blobs) == lists


@given(st.data())
def test_facts_that_no_writer_makes_are_refused(data: Any) -> None:
    facts, blobs = FileLists(volumes=(VOLUME,)).to_facts()
    (tree,) = facts["volumes"]
    key = data.draw(st.sampled_from(sorted(tree)))
    tree[key] = data.draw(json_values.filter(lambda value: type(value) is not type(tree[key])))
    try:
        FileLists.from_facts(facts, blobs)
    except IntegrityError:
        return
    # Only where a text or null may stand.
    assert tree[key] is None or isinstance(tree[key], str)


def test_pieces_that_the_note_does_not_have() -> None:
    facts, blobs = FileLists(volumes=(VOLUME,)).to_facts()
    with pytest.raises(IntegrityError):
        FileLists.from_facts(facts, blobs[:1])
    with pytest.raises(IntegrityError):
        FileLists.from_facts({**facts, "version": 2}, blobs)
    with pytest.raises(LengthError):
        Note.from_bytes(b"\2\0\0\0" + b"p" * 32)
