"""Catalog and index cache are copies: whatever happens to them, `vmfs rebuild` brings equal answers back from
the store alone. And what `b3sum` says of the packs, without any key."""

from __future__ import annotations

import json
import random
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from blake3 import blake3
from command_helpers import Site
from fault_helpers import (
    CHUNK,
    back_up,
    check_sound,
    copy_tree,
    noise_chunk,
    open_at,
    text_chunk,
    write_disk,
)

from vmfs.repo import names

pytest_plugins = "fault_fixtures"

B3SUM = "cd {packs} && find . -type f ! -name '.*' -printf '%f  %P\\n' | b3sum --check --quiet"
"""As docs/operations.md has it."""


def make_site(root: Path, seed: int) -> Site:
    """Two VMs, four points, several index objects merged into a few local files."""
    root.mkdir()
    site = Site(root)
    site.init()
    chunks = [text_chunk(seed), noise_chunk(seed), bytes(CHUNK), text_chunk(seed + 1)]
    (root / "vm.ovf").write_text("<ovf/>")
    for number in range(4):
        chunks[number] = text_chunk(seed + 10 + number)
        disk = write_disk(root / "disk.raw", b"".join(chunks))
        extra = ["--attach", root / "vm.ovf"] if number == 2 else []
        site.ingest(f"vm{number % 2}", f"root={disk}", *extra)
    return site


@pytest.fixture(scope="module")
def made(module_place: Path) -> Site:
    return make_site(module_place / "made", 1)


@pytest.fixture(scope="module")
def stranger(module_place: Path) -> Site:
    return make_site(module_place / "stranger", 5)


@pytest.fixture
def site(made: Site, place: Path) -> Site:
    copy_tree(made.repository, place / "repository")
    shutil.copytree(made.cache, place / "cache")
    shutil.copy(made.passphrase, place / "passphrase")
    return Site(place)


def answers(site: Site) -> dict[str, object]:
    """What every command says that prints facts, and the bytes that export gives."""
    points = site.vmfs("points", "--json").json()
    said: dict[str, object] = {"points": points}
    for point in points["points"]:
        said[point["id"]] = site.vmfs("show", point["id"], "--json").json()
        target = site.root / "exported"
        assert site.vmfs("export", f"{point['id']}:root", "-o", target).status == 0
        said[f"{point['id']} exported"] = blake3(target.read_bytes()).hexdigest()
        target.unlink()
    stats = site.vmfs("stats", "--json").json()
    said["stats"] = {name: value for name, value in stats.items() if name not in ("cache", "repository")}
    said["verify"] = site.vmfs("verify", "--data", "--json").json()
    said["latest"] = site.vmfs("show", "vm1@latest", "--json").json()
    return said


def local_files(site: Site) -> list[Path]:
    return sorted(path for path in in_cache(site, "*") if path.is_file() and path.name != "lock")


def in_cache(site: Site, pattern: str) -> list[Path]:
    """What is to be harmed: of nothing, no test."""
    found = list(site.cache.rglob(pattern))
    assert found, f"the cache has no {pattern}"
    return found


def delete_all(site: Site, _: Site) -> None:
    shutil.rmtree(site.cache)


def delete_catalog(site: Site, _: Site) -> None:
    for path in in_cache(site, "catalog*"):
        path.unlink()


def delete_each_segment(site: Site, _: Site) -> None:
    for path in in_cache(site, "*.vmfi"):
        path.unlink()


def cut_all_short(site: Site, _: Site) -> None:
    for path in local_files(site):
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def empty_all(site: Site, _: Site) -> None:
    for path in local_files(site):
        path.write_bytes(b"")


def zero_all(site: Site, _: Site) -> None:
    for path in local_files(site):
        path.write_bytes(bytes(path.stat().st_size))


def noise_all(site: Site, _: Site) -> None:
    for path in local_files(site):
        path.write_bytes(random.Random(path.name).randbytes(path.stat().st_size))  # noqa: S311


def flip_segments(site: Site, _: Site) -> None:
    """A look-up finds nothing, or the wrong place: the header stays as it is."""
    for path in in_cache(site, "*.vmfi"):
        data = bytearray(path.read_bytes())
        for at in range(64, len(data), 3):
            data[at] ^= 0xA5
        path.write_bytes(data)


def garble_state(site: Site, _: Site) -> None:
    for path in in_cache(site, "state.json"):
        path.write_text("not json")


def nonsense_for_state(site: Site, _: Site) -> None:
    for path in in_cache(site, "state.json"):
        path.write_text('{"segments": 5}')


def state_of_nothing(site: Site, _: Site) -> None:
    """It claims that every index object is covered by a file that is not there."""
    for path in in_cache(site, "state.json"):
        tree = json.loads(path.read_text())
        covered = [name for names in tree["segments"].values() for name in names]
        path.write_text(json.dumps({"segments": {"0123456789abcdef.vmfi": covered}}))


def swap_with_stranger(site: Site, stranger: Site) -> None:
    """All local files are those of another repository, under this one's names."""
    (ours,), (theirs,) = site.cache.iterdir(), stranger.cache.iterdir()
    shutil.rmtree(ours)
    shutil.copytree(theirs, ours)


def swap_segments(site: Site, stranger: Site) -> None:
    """The state is ours, what it speaks of is another's."""
    (theirs, *_) = stranger.cache.rglob("*.vmfi")
    for path in in_cache(site, "*.vmfi"):
        path.write_bytes(theirs.read_bytes())


ACCIDENTS: list[Callable[[Site, Site], None]] = [
    delete_all,
    delete_catalog,
    delete_each_segment,
    cut_all_short,
    empty_all,
    zero_all,
    noise_all,
    flip_segments,
    garble_state,
    nonsense_for_state,
    state_of_nothing,
    swap_with_stranger,
    swap_segments,
]


@pytest.mark.parametrize("accident", ACCIDENTS, ids=lambda accident: accident.__name__)
def test_rebuild_gives_equal_answers(
    site: Site, stranger: Site, accident: Callable[[Site, Site], None]
) -> None:
    before = answers(site)
    objects = sorted(path.relative_to(site.repository) for path in site.repository.rglob("*"))
    accident(site, stranger)
    rebuilt = site.vmfs("rebuild", "--json").json()
    assert rebuilt["sound"] is True
    assert answers(site) == before
    # The store needed nothing.
    assert sorted(path.relative_to(site.repository) for path in site.repository.rglob("*")) == objects


INDEX_ACCIDENTS = [accident for accident in ACCIDENTS if accident is not delete_catalog]


@pytest.mark.parametrize("accident", INDEX_ACCIDENTS, ids=lambda accident: accident.__name__)
def test_an_index_cache_heals_without_rebuild(
    site: Site, stranger: Site, accident: Callable[[Site, Site], None]
) -> None:
    """The library reads all and verifies all, whatever the cache was."""
    accident(site, stranger)
    with open_at(site.repository, site.cache) as repository:
        for point_id in repository.point_ids():
            for disk in repository.load_point(point_id).manifest.disks:
                assert len(repository.open_disk(disk).read(0, disk.size)) == disk.size
        check_sound(repository)
    with open_at(site.repository, site.cache) as repository:
        check_sound(repository)


@pytest.mark.parametrize("accident", INDEX_ACCIDENTS, ids=lambda accident: accident.__name__)
def test_merging_spreads_no_damage(
    site: Site, stranger: Site, place: Path, accident: Callable[[Site, Site], None]
) -> None:
    """New index objects are taken in on top of a damaged cache."""
    accident(site, stranger)
    for number in range(4):
        disk = write_disk(place / "disk.raw", noise_chunk(50 + number) + text_chunk(60 + number))
        with open_at(site.repository, site.cache) as repository:
            back_up(repository, "more", {"root": disk})
    with open_at(site.repository, site.cache) as repository:
        check_sound(repository)


def test_the_cache_vanishes_while_it_is_used(site: Site) -> None:
    with open_at(site.repository, site.cache) as repository:
        shutil.rmtree(site.cache)
        check_sound(repository)
        repository.refresh()
        check_sound(repository)


@dataclass(frozen=True)
class IndexDamage:
    """What happens to index objects in the store; `content` None removes them."""

    content: bytes | None
    all: bool


@pytest.mark.parametrize(
    "damage",
    [
        IndexDamage(None, False),
        IndexDamage(None, True),
        IndexDamage(b"", True),
        IndexDamage(b"VMFI" * 99, False),
    ],
    ids=["one removed", "all removed", "all emptied", "one garbled"],
)
def test_index_objects_damaged_or_missing(site: Site, damage: IndexDamage) -> None:
    """Everything reads, verify tells, rebuild repairs."""
    before = answers(site)
    paths = sorted((site.repository / names.INDEX).iterdir())
    for path in paths if damage.all else paths[1:2]:
        path.unlink()
        if damage.content is not None:
            path.write_bytes(damage.content)
    for cache in (site.cache, site.root / "fresh"):
        with open_at(site.repository, cache) as repository:
            for point_id in repository.point_ids():
                for disk in repository.load_point(point_id).manifest.disks:
                    assert len(repository.open_disk(disk).read(0, disk.size)) == disk.size
    told = site.vmfs("verify", "--data", "--json")
    assert told.status == 3
    report = json.loads(told.out)
    assert not report["hits"]
    assert all(finding["object"].startswith(names.INDEX) for finding in report["findings"])
    assert site.vmfs("rebuild", "--json").json()["sound"] is True
    after = answers(site)
    assert without_sizes(after) == without_sizes(before)


def without_sizes(said: dict[str, object]) -> dict[str, object]:
    """An index object made anew may cover more packs than the one it stands for."""
    return {name: value for name, value in said.items() if name != "stats"}


def check_with_b3sum(repository: Path) -> subprocess.CompletedProcess[str]:
    command = B3SUM.format(packs=repository / names.PACKS)
    return subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False)


@pytest.mark.skipif(shutil.which("b3sum") is None, reason="install b3sum")
def test_b3sum_needs_no_key(site: Site) -> None:
    (site.repository / names.PACKS / "00").mkdir(exist_ok=True)
    (site.repository / names.PACKS / "00" / ".tmp-0123456789abcdef").write_bytes(b"half")
    done = check_with_b3sum(site.repository)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    victim, *_ = (path for path in (site.repository / names.PACKS).rglob("?" * 64))
    content = bytearray(victim.read_bytes())
    content[len(content) // 2] ^= 1
    # A new file, for the bytes are shared with the other copies of the site.
    victim.unlink()
    victim.write_bytes(content)
    done = check_with_b3sum(site.repository)
    assert done.returncode != 0
    assert [line.split(":")[0] for line in done.stdout.splitlines()] == [
        f"{victim.parent.name}/{victim.name}"
    ]


def test_pack_and_index_names_are_plain_blake3(site: Site) -> None:
    """What b3sum computes, computed here; and so no more secret than the object itself."""
    found = 0
    for prefix in (names.PACKS, names.INDEX):
        for path in (site.repository / prefix).rglob("?" * 64):
            assert blake3(path.read_bytes()).hexdigest() == path.name
            found += 1
    assert found > 8


def test_the_shell_line_is_the_documented_one() -> None:
    line = B3SUM.format(packs="/backup/main/packs")
    operations = Path(__file__).parents[2] / "docs" / "operations.md"
    assert line in operations.read_text().splitlines()


def test_the_repository_needs_no_cache_at_all(site: Site, place: Path) -> None:
    """A cache directory that cannot be made is done without."""
    blocked = place / "blocked"
    blocked.write_bytes(b"a file")
    with open_at(site.repository, blocked) as repository:
        check_sound(repository)
        temporary = repository.cache_dir
        assert temporary.is_dir()
    assert not temporary.exists()
