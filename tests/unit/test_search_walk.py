"""Walking what a worker says of a file system that no mkfs would make."""

from __future__ import annotations

import errno
import stat
from collections.abc import Mapping, Sequence
from typing import cast

import pytest

from vmfs.format import filelist
from vmfs.repo.filelists import MAX_PROBLEMS
from vmfs.search.walk import Walk
from vmfs.volumes.files.client import FileSystem, Found, GuestError, Stat


def directory(node: int) -> Stat:
    return Stat(node, stat.S_IFDIR | 0o755, 0, 0, 2, 0, 0, 0, 0)


def file(node: int, **facts: int) -> Stat:
    return Stat(node, stat.S_IFREG | 0o644, 0, 0, 1, 5, 6, 7, 8)._replace(**facts)


class Hostile:
    """Node 1 is the root. A directory that is not listed cannot be read."""

    def __init__(self, tree: Mapping[int, Sequence[Found]]) -> None:
        self._tree = tree

    def root(self) -> Stat:
        return directory(1)

    def scan(self, node: int) -> list[Found]:
        if node not in self._tree:
            raise GuestError(errno.EIO, "its blocks are damaged")
        return list(self._tree[node])


def walk(
    tree: Mapping[int, Sequence[Found]], marked: frozenset[int] = frozenset()
) -> tuple[Walk, list[bytes]]:
    walk = Walk(cast(FileSystem, Hostile(tree)), marked)
    entries = list(walk)
    for run in filelist.cut(entries):
        assert filelist.decode(filelist.encode(run)) == run
    assert walk.entries == len(entries)
    return walk, [entry.path for entry in entries]


def test_names_that_cannot_be_are_told_and_left_out() -> None:
    names = [b"", b".", b"..", b"a/b", b"nul\0", b"x" * 5000, b"good"]
    walked, paths = walk({1: [Found(name, file(9)) for name in names]})
    assert paths == [b"good"]
    assert walked.problem_count == 6
    assert all(problem.path.startswith("/") and len(problem.path) < 600 for problem in walked.problems)


def test_a_name_that_is_there_twice() -> None:
    walked, paths = walk({1: [Found(b"a", file(2)), Found(b"a", file(3)), Found(b"A", file(4))]})
    assert paths == [b"A", b"a"]
    assert walked.problem_count == 1


def test_loops_of_directories_end() -> None:
    walked, paths = walk(
        {
            1: [Found(b"a", directory(2)), Found(b"self", directory(1))],
            2: [Found(b"b", directory(3)), Found(b"up", directory(1))],
            3: [Found(b"a", directory(2))],
        }
    )
    assert paths == [b"a", b"self", b"a/b", b"a/up", b"a/b/a"]
    assert walked.problem_count == 3


def test_a_path_that_grows_for_ever_ends() -> None:
    name = b"d" * 250
    walked, paths = walk({node: [Found(name, directory(node + 1))] for node in range(1, 1000)})
    assert max(map(len, paths)) <= filelist.MAX_PATH + len(name) + 1
    assert walked.problem_count == 1


def test_what_cannot_be_read_is_told_file_by_file() -> None:
    walked, paths = walk(
        {
            1: [
                Found(b"bad", None, "its inode is damaged"),
                Found(b"dir", directory(5)),
                Found(b"ok", file(3)),
            ],
        }
    )
    assert paths == [b"bad", b"dir", b"ok"]
    assert walked.problems == [
        ("/bad", "its inode is damaged"),
        ("/dir", "its files cannot be listed: its blocks are damaged"),
    ]


def test_a_root_that_cannot_be_read() -> None:
    with pytest.raises(GuestError):
        walk({})


def test_numbers_that_cannot_be() -> None:
    walked, paths = walk(
        {
            1: [
                Found(
                    b"f",
                    file(2, size=1 << 70, mtime=-(1 << 80), ctime=1 << 80, uid=-1, gid=1 << 40, mode=1 << 40),
                )
            ]
        }
    )
    assert paths == [b"f"]
    assert walked.problem_count == 0


def test_of_very_many_problems_some_are_kept() -> None:
    walked, _ = walk({1: [Found(b"%05d" % number, None, "x" * 9999) for number in range(MAX_PROBLEMS + 50)]})
    assert walked.problem_count == MAX_PROBLEMS + 50
    assert len(walked.problems) == MAX_PROBLEMS


def test_marked_directories_are_found() -> None:
    walked, _ = walk(
        {1: [Found(b"@", directory(2))], 2: [Found(b"etc", directory(3))], 3: []}, frozenset({1, 2, 9})
    )
    assert walked.prefixes == {1: b"", 2: b"@"}
