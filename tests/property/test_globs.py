"""Patterns: what the regular expression matches LIKE lets through: no match is lost in the database."""

from __future__ import annotations

import fnmatch
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmfs.catalog.globs import compile_glob
from vmfs.errors import UsageError

pieces = st.sampled_from(
    ["*", "**", "?", "[a-c]", "[!a]", "[]", "[", "]", "/", "a", "b", "A", "é", "%", "_", "\\", "\\*", "."]
)
patterns = st.lists(pieces, min_size=1, max_size=7).map("".join)
texts = st.text("abcAB/é%_\\*.[]", max_size=8)


def like(pattern: str, text: str) -> bool:
    """As SQLite has it: no matter which case ASCII has, and no escapes."""
    parts = {"%": ".*", "_": "."}
    regex = "".join(parts.get(char, re.escape(char)) for char in pattern)
    return re.fullmatch(regex, text, re.DOTALL | re.IGNORECASE | re.ASCII) is not None


@given(patterns, texts, st.booleans())
def test_like_loses_nothing(pattern: str, text: str, ignore_case: bool) -> None:
    glob = compile_glob(pattern, ignore_case=ignore_case)
    if glob.matches(text) and "**/" not in pattern:
        # Of a path, LIKE is used for its last part alone.
        assert like(glob.like, text)
    if glob.matches(text):
        assert text.startswith(glob.literal)


@given(
    st.lists(st.sampled_from(["*", "?", "a", "b", "[ab]", "."]), min_size=1, max_size=6).map("".join),
    st.text("ab.", max_size=6),
)
def test_simple_patterns_are_those_of_the_shell(pattern: str, text: str) -> None:
    if "**" not in pattern:
        assert compile_glob(pattern).matches(text) is fnmatch.fnmatchcase(text, pattern)


@given(texts)
def test_a_text_whose_meaning_is_taken_matches_itself_alone(text: str) -> None:
    if text:
        glob = compile_glob(re.sub(r"([*?\[\\])", r"\\\1", text))
        assert glob.matches(text)
        assert not glob.matches(text + "a")
        assert glob.literal == text


@pytest.mark.parametrize(
    ("pattern", "matching", "others"),
    [
        ("/etc/*.conf", ["/etc/a.conf", "/etc/.conf"], ["/etc/x/a.conf", "/etc/a.con"]),
        ("/etc/**", ["/etc/a", "/etc/a/b"], ["/etc", "/etcx"]),
        ("**/x", ["/x", "x", "/a/b/x"], ["/a/bx"]),
        ("/a/**/b", ["/a/b", "/a/x/y/b"], ["/ab", "/a/xb"]),
        ("a**b", ["ab", "a/x/b"], ["a"]),
        ("[!a]", ["b", "!"], ["a", "/", ""]),
        ("[]a]", ["]", "a"], ["b"]),
        ("x[", ["x["], ["x"]),
        ("a\\*", ["a*"], ["ab", "a\\*"]),
        ("a\n?", ["a\nb"], ["a\n"]),
    ],
)
def test_patterns(pattern: str, matching: list[str], others: list[str]) -> None:
    glob = compile_glob(pattern)
    assert [text for text in matching if not glob.matches(text)] == []
    assert [text for text in others if glob.matches(text)] == []


@pytest.mark.parametrize("pattern", ["", "a\0b", "x" * 5000, "[b-a]"])
def test_what_is_no_pattern(pattern: str) -> None:
    with pytest.raises(UsageError):
        compile_glob(pattern)
