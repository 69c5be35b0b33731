"""Any byte of any object changed, any object cut short, emptied, removed or moved: verify names exactly what
is hit, what is hit raises IntegrityError when it is read, and everything else reads right."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path

import pytest
from conftest import SECRET
from damage_helpers import (
    KEY_FILE,
    Damage,
    Scene,
    Seen,
    all_objects,
    judge,
    judge_unopenable,
    unlocked,
)
from fault_helpers import (
    Contents,
    back_up,
    check_points,
    create_at,
    noise_chunk,
    open_at,
    text_chunk,
    write_disk,
)

from vmfs.cli.main import main
from vmfs.format import pack
from vmfs.repo import names
from vmfs.repo.verify import verify

pytest_plugins = "fault_fixtures"

SHARDS = 8


def offsets(scene: Scene, name: str) -> list[int]:
    return scene.interesting.get(name) or list(range((scene.root / name).stat().st_size))


@pytest.mark.slow
@pytest.mark.parametrize("shard", range(SHARDS))
def test_every_byte(scene: Scene, damage: Damage, shard: int) -> None:
    cases = [(name, offset) for name in all_objects(scene.root) for offset in offsets(scene, name)]
    assert len(cases) > 5000
    choose = random.Random(shard)  # noqa: S311
    for name, offset in cases[shard::SHARDS]:
        content = bytearray((scene.root / name).read_bytes())
        content[offset] ^= choose.choice((1 << choose.randrange(8), choose.randrange(1, 256)))
        damage(name, bytes(content), structure=offset % 8 == 0)


def test_cut_short_emptied_or_removed(scene: Scene, damage: Damage) -> None:
    for name in all_objects(scene.root):
        whole = (scene.root / name).read_bytes()
        for size in sorted({0, 1, 3, 8, 63, len(whole) // 2, len(whole) - 57, len(whole) - 1}):
            if 0 <= size < len(whole):
                damage(name, whole[:size])
        damage(name, whole + b"\0")
        damage(name, bytes(len(whole)))
        kind = name.split("/")[0]
        if kind not in (names.POINTS, names.LEASES, names.INDEX, names.CONFIG, names.KEYS):
            damage(name, None)


def test_all_key_slots_removed(damage: Damage) -> None:
    for path in (damage.root / names.KEYS).iterdir():
        path.unlink()
    judge_unopenable(damage.root, damage.place / "cache", names.KEYS)


def test_the_config_removed(damage: Damage) -> None:
    (damage.root / names.CONFIG).unlink()
    judge_unopenable(damage.root, damage.place / "cache", names.CONFIG)


def test_another_slot_opens_what_the_damaged_one_does_not(damage: Damage) -> None:
    name = names.key_slot(damage.scene.unlocked.slot_id)
    for content in (b"", b"VMFK", bytes(200)):
        (damage.root / name).write_bytes(content)
        with open_at(damage.root, damage.place / "cache", secret=KEY_FILE) as repository:
            report = verify(repository, data=1.0)
            assert [finding.object for finding in report.findings] == [name]
            assert not report.hits
            check_points(repository, damage.scene.contents)


def test_an_index_object_removed(scene: Scene, damage: Damage) -> None:
    """The packs tell themselves what is in them, so nothing is lost but the time to ask them."""
    objects = [name for name in all_objects(scene.root) if name.startswith(names.INDEX)]
    assert objects
    for number, name in enumerate(objects):
        (damage.root / name).unlink()
        for cache in (damage.place / f"fresh-{number}", damage.place / "cache"):
            assert judge(damage.open_with(cache), scene, names.INDEX) == Seen()
        shutil.copy(scene.root / name, damage.root / name)
    for path in (damage.root / names.INDEX).iterdir():
        path.unlink()
    assert judge(damage.open_with(damage.place / "none"), scene, names.INDEX) == Seen()


@pytest.fixture(scope="module")
def large(module_place: Path) -> tuple[Path, Contents]:
    """24 MiB in 3 points of one disk, packs of 1 MiB."""
    place = module_place / "large"
    place.mkdir()
    contents: dict[str, dict[str, bytes]] = {}
    chunks = [noise_chunk(number) if number % 3 else text_chunk(number) for number in range(300)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pack, "TARGET_SIZE", 1 << 20)
        with create_at(place / "repository", place / "cache") as repository:
            for number in range(3):
                chunks[number * 90 : number * 90 + 30] = [noise_chunk(1000 * number + k) for k in range(30)]
                content = b"".join(chunks)
                point = back_up(repository, "vm", {"root": write_disk(place / "root.raw", content)})
                contents[point.id] = {"root": content}
    return place / "repository", contents


@pytest.mark.parametrize("seed", range(4))
def test_samples_of_a_larger_repository(large: tuple[Path, Contents], place: Path, seed: int) -> None:
    root, contents = large
    choose = random.Random(seed)  # noqa: S311
    scene = Scene(root, place, contents, {}, *unlocked(root))
    objects = [name for name in all_objects(root) if name.split("/")[0] in (names.PACKS, names.POINTS)]
    shutil.copytree(root, place / "repository")
    damage = Damage(scene, place / "repository", place)
    for name in choose.sample(objects, 6):
        whole = (root / name).read_bytes()
        flipped = bytearray(whole)
        flipped[choose.randrange(len(whole))] ^= 1 << choose.randrange(8)
        damage(name, bytes(flipped))
        damage(name, whole[: choose.randrange(len(whole))])


def test_the_command(scene: Scene, damage: Damage, capsys: pytest.CaptureFixture[str]) -> None:
    """Exit status 3, and object, points, disks and bytes by name."""
    passphrase = damage.place / "passphrase"
    passphrase.write_bytes(SECRET.secret)
    options = ["--passphrase-file", str(passphrase), "--cache-dir", str(damage.place / "cli")]

    def run(*more: str) -> tuple[int, str, str]:
        status = main(["verify", str(damage.root), *options, *more])
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    status, out, _ = run("--data")
    assert (status, "all sound" in out) == (0, True)
    sample = [name for name in all_objects(scene.root) if not name.startswith((names.KEYS, names.CONFIG))]
    for name in sample:
        whole = (damage.root / name).read_bytes()
        (damage.root / name).write_bytes(bytes([whole[0] ^ 1]) + whole[1:])
        status, out, _ = run("--data")
        assert (status, name in out) == (3, True)
        with open_at(damage.root, damage.place / "cache") as repository:
            report = verify(repository, data=1.0)
        for hit in report.hits:
            assert f"lost: restore point {hit.point}" in out
            for found in hit.ranges:
                assert f"{found.start}+{found.length}" in out
            if hit.disk:
                assert f"disk {hit.disk}, bytes" in out
        status, out, _ = run("--data", "--json")
        told_by_command = json.loads(out)
        assert status == 3
        assert {item["object"] for item in told_by_command["findings"]} == {name}
        assert len(told_by_command["hits"]) == len(report.hits)
        (damage.root / name).write_bytes(whole)
    for name in (names.CONFIG, names.key_slot(scene.unlocked.slot_id)):
        whole = (damage.root / name).read_bytes()
        (damage.root / name).write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
        status, out, err = run("--data")
        assert (status, out) == (3, "")
        assert name in err
        assert len(err.splitlines()) <= 2
        (damage.root / name).write_bytes(whole)


def test_a_point_that_is_made_while_we_look_is_not_damaged(tmp_path: Path) -> None:
    """In packs, and told of by an index, that were not there when those were listed."""
    disks = {"root": write_disk(tmp_path / "root.raw", noise_chunk(1) + noise_chunk(2))}
    with create_at(tmp_path / "repository", tmp_path / "cache") as repository:
        back_up(repository, "web", disks)

        def progress(what: str, *_: object) -> None:
            if what == "packs" and len(repository.point_ids()) == 1:
                write_disk(disks["root"], noise_chunk(1) + noise_chunk(3))
                with open_at(tmp_path / "repository", tmp_path / "other") as other:
                    back_up(other, "web", disks)

        report = verify(repository, data=1.0, progress=progress)
        assert (report.findings, report.hits, report.points) == ([], [], 2)
