"""Adding a note with blobs of its own, with every operation on the store in turn the last before a kill or a
power cut, or failing: there is the whole note or none, the point is as it was, and the next try succeeds."""

from __future__ import annotations

import shutil
from contextlib import suppress
from pathlib import Path

import pytest
from fault_helpers import (
    CrashPosix,
    Fault,
    Killed,
    Medium,
    back_up,
    check_point,
    check_sound,
    copy_tree,
    create_at,
    noise_chunk,
    open_at,
    write_disk,
)

from vmfs.errors import ObjectMissingError, UsageError, VmfsError
from vmfs.format import filelist
from vmfs.format.filelist import Entry
from vmfs.format.keys import Kind
from vmfs.repo.filelists import KIND, FileLists, VolumeList, find_lists, read_entries, read_lists
from vmfs.repo.notes import add_note, list_notes, make_note
from vmfs.repo.repository import Repository

pytest_plugins = "fault_fixtures"
pytestmark = pytest.mark.usefixtures("killed_leases")

ENTRIES = [Entry(b"etc", b"%04d" % number, 0o100644, 0, 0, number, 0, 0) for number in range(2000)]


def add_lists(repository: Repository, point: str) -> str:
    with repository.write_session() as session:
        runs = filelist.cut(ENTRIES)
        pieces = tuple(session.store_blob(Kind.ARTIFACT, filelist.encode(run)).id for run in runs)
        volume = VolumeList(
            key="0", name="root", kind="disk", pieces=pieces, entries=len(ENTRIES), listed=True, walked=point
        )
        facts, blobs = FileLists(volumes=(volume,)).to_facts()
        return session.commit_note(point, make_note(repository, KIND, facts, blobs))


def check(root: Path, cache: Path, point: str, content: bytes) -> int:
    """How many whole notes there are; there is nothing else."""
    with open_at(root, cache) as repository:
        check_point(repository, point, {"root": content})
        check_sound(repository)
        found, damaged = list_notes(repository, point)
        assert damaged == ()
        for note in found:
            (volume,) = read_lists(note).volumes
            assert list(read_entries(repository, volume)) == ENTRIES
        return len(found)


@pytest.mark.parametrize("kind", ["kill", "tear-kill", "ENOSPC", "EIO"])
def test_the_whole_note_or_none(place: Path, kind: str) -> None:
    content = noise_chunk(1)
    (place / "top").mkdir()
    with create_at(place / "top/repository", place / "cache") as repository:
        point = back_up(repository, "vm", {"root": write_disk(place / "root.raw", content)}).id
    number, whole = 0, set()
    while True:
        stage = place / "stage"
        medium = Medium(copy_tree(place / "top", stage / "top"))
        shutil.copytree(place / "cache", stage / "cache")
        fault = Fault(kind, number, "write" if kind == "tear-kill" else None)
        committed = False
        with (
            suppress(Killed, VmfsError),
            open_at(
                medium.top / "repository", stage / "cache", posix=CrashPosix(medium, fault)
            ) as repository,
        ):
            add_lists(repository, point)
            committed = True
        cut = medium.cut_power(stage / "cut") / "repository"
        notes = check(cut, stage / "fresh", point, content)
        assert notes <= 1
        assert not committed or notes == 1
        whole.add(notes)
        with open_at(cut, stage / "cache") as repository:
            add_lists(repository, point)
        assert check(cut, stage / "cache", point, content) == notes + 1
        shutil.rmtree(stage)
        if not fault.hit:
            break
        number += 1
    assert number > 5 or kind == "tear-kill"
    assert whole == {0, 1}


def test_a_note_needs_its_point(place: Path) -> None:
    with create_at(place / "repository", place / "cache") as repository:
        with pytest.raises(ObjectMissingError):
            add_note(repository, "01M7YBZBZBWKTZ6ZNGY34C6FVZ", "boot", {})
        with pytest.raises(UsageError, match="float"):
            add_note(repository, "01M7YBZBZBWKTZ6ZNGY34C6FVZ", "boot", {"seconds": 1.5})
        assert list(repository.store.list("notes")) == []


def test_a_note_is_no_note_of_another_point(place: Path) -> None:
    """The store cannot give a point the evidence of another."""
    with create_at(place / "repository", place / "cache") as repository:
        disk = write_disk(place / "root.raw", noise_chunk(1))
        one, other = (back_up(repository, "vm", {"root": disk}).id for _ in range(2))
        note = add_note(repository, one, "boot", {"passed": True})
        add_note(repository, one, "hold", {"until": "2027"})
        data = repository.store.get(f"notes/{one}/{note}")
        repository.store.put(f"notes/{other}/{note}", [data])
        assert [found.facts for found in list_notes(repository, one, "boot").found] == [{"passed": True}]
        assert [found.kind for found in list_notes(repository, one).found] == ["boot", "hold"]
        found, damaged = list_notes(repository, other)
        assert found == ()
        assert [(item.point, item.id) for item in damaged] == [(other, note)]
        assert find_lists(repository, other)[0] is None
