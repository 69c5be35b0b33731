"""Reads damaged images as a worker does, confined like one, many in one; run as a program of its own:

    guest_mutations.py TYPE IMAGE FIRST COUNT MEMORY

For each of the mutations FIRST up to FIRST + COUNT of the image, a line: its number, seconds, the highest
memory in use in KiB, and what came of it. MEMORY is the limit in bytes.
"""

from __future__ import annotations

import os
import random
import resource
import stat
import sys
import time
from collections import Counter
from pathlib import Path

BLOCK = 512
MOST_ENTRIES = 2000


class Damaged:
    """A device (worker/model.py) of an image with a mutation."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.size = len(data)

    def read(self, offset: int, length: int) -> bytes:
        if offset < 0 or length < 0:
            raise OSError(22, "a read of what cannot be")
        return self.data[offset : offset + length]


def mutate(image: bytes, used: list[int], number: int) -> bytes:
    """Bytes flipped, numbers made huge or zero, blocks put in the place of others, in the blocks `used` by
    metadata."""
    rng = random.Random(number)  # noqa: S311
    data = bytearray(image)
    for _ in range(rng.choice((1, 1, 2, 4, 16, 64))):
        at = rng.choice(used) * BLOCK + rng.randrange(BLOCK)
        kind = rng.randrange(5)
        if kind < 2:
            data[at] ^= 1 << rng.randrange(8)
        elif kind == 2:
            value = rng.choice((0, 1, 0x7F, 0xFF))
            at &= ~3
            data[at : at + 4] = bytes([value]) * 4
        elif kind == 3:
            at &= ~3
            data[at : at + 4] = rng.randrange(len(image) // BLOCK + 16).to_bytes(4, "little")
        else:
            one, other = rng.choice(used) * BLOCK, rng.choice(used) * BLOCK
            data[one : one + BLOCK] = image[other : other + BLOCK]
    return bytes(data)


def used_blocks(image: bytes, marker: bytes) -> list[int]:
    """Those that are neither empty nor data of files, which holds the marker."""
    blocks = (image[at : at + BLOCK] for at in range(0, len(image), BLOCK))
    return [number for number, block in enumerate(blocks) if block.strip(b"\0") and marker not in block]


def main(type_: str, image: bytes, first: int, count: int, memory: int) -> None:
    sys.path.insert(0, str(Path(__file__).parents[1] / "vmfs" / "volumes" / "files"))
    from worker import program, readers, sandbox  # type: ignore[import-not-found]

    opener = readers.load(type_)
    program.prepare()
    used = used_blocks(image, b"MARKER")
    sandbox.confine(keep=1, memory=memory, cpu_seconds=300)
    for number in range(first, first + count):
        started = time.monotonic()
        outcome = walk(opener, mutate(image, used, number))
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        os.write(1, f"{number} {time.monotonic() - started:.3f} {peak} {outcome}\n".encode())


def walk(opener: object, data: bytes) -> str:
    """Everything that can be asked for, of every file, as far as it goes."""
    outcomes: Counter[str] = Counter()
    try:
        reader = opener(Damaged(data))  # type: ignore[operator]
        pending = [reader.root()]
    except Exception as error:
        return f"refused:{type(error).__name__}"
    seen = set()
    while pending and len(seen) < MOST_ENTRIES:
        status = pending.pop()
        if status.node in seen:
            continue
        seen.add(status.node)
        try:
            if stat.S_ISDIR(status.mode):
                for number, entry in enumerate(reader.scan(status.node)):
                    if number > MOST_ENTRIES:
                        break
                    if entry.stat is not None:
                        pending.append(entry.stat)
                    elif entry.problem:
                        outcomes["problem"] += 1
                continue
            if stat.S_ISLNK(status.mode):
                reader.readlink(status.node)
            if stat.S_ISREG(status.mode):
                reader.read(status.node, 0, 1 << 20)
                reader.read(status.node, max(status.size - 4096, 0), 4096)
                for number, _ in enumerate(reader.extents(status.node)):
                    if number > 100_000:
                        break
            reader.xattrs(status.node)
        except Exception as error:
            outcomes[type(error).__name__] += 1
    return f"read:{len(seen)}:{dict(outcomes)}".replace(" ", "")


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]).read_bytes(), *map(int, sys.argv[3:6]))
