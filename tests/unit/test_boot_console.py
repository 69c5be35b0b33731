"""The console of a guest: the text is the same however its bytes come, and matches are found across cuts."""

from __future__ import annotations

import os
import re
import threading
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from vmfs.boot.console import Console

SAID = "\x1b[2J\x1b[1;32mWelcome\x1b[0m – grüße\r\nweb01 \x1b(Blogin:\x07 ".encode()


def read_all(pieces: list[bytes], pattern: str = "never comes") -> tuple[Console, re.Match[str] | None]:
    reader, writer = os.pipe()

    def write() -> None:
        for piece in pieces:
            os.write(writer, piece)
        os.close(writer)

    thread = threading.Thread(target=write)
    thread.start()
    console = Console(reader)
    found = console.wait_for(re.compile(pattern), 10)
    console.drain(10)
    thread.join()
    os.close(reader)
    return console, found


@given(st.lists(st.integers(0, len(SAID)), max_size=8))
def test_the_cuts_do_not_matter(cuts: list[int]) -> None:
    places = [0, *sorted(cuts), len(SAID)]
    pieces = [SAID[start:end] for start, end in pairwise(places) if start < end]
    console, found = read_all(pieces, "web01 login:")
    assert console.text == "Welcome – grüße\nweb01 login: "
    assert found is not None


def test_an_end_without_the_text_is_no_match() -> None:
    console, found = read_all([b"Kernel panic"], "login:")
    assert found is None
    assert console.ended
    assert console.text == "Kernel panic"


def test_much_output_is_bounded_and_searched_to_its_end() -> None:
    console, found = read_all([b"x" * 50_000] * 60 + [b"log", b"in:"], "login:")
    assert found is not None
    assert len(console.text) <= 1 << 20
    assert console.text.endswith("login:")


def test_a_quiet_guest_costs_the_time_and_no_more() -> None:
    reader, writer = os.pipe()
    assert Console(reader).wait_for(re.compile("x"), 0.05) is None
    os.close(reader)
    os.close(writer)
