"""Shell patterns for names and paths: exactly, as regular expressions, and roughly, as SQL's LIKE, for the
database to sort out most of what does not match.

`*` and `?` stand for any characters but a slash, `**` for slashes as well, `[a-z]` and `[!a-z]` for one
character; a backslash takes the meaning from what follows it."""

from __future__ import annotations

import re
from dataclasses import dataclass

from vmfs.errors import UsageError

_LONGEST = 4096


@dataclass(frozen=True, slots=True)
class Glob:
    """`regex` is for the whole text, `like` for a superset of it in which case makes no difference. `literal`
    is what every match begins with; empty where case makes no difference."""

    pattern: str
    regex: re.Pattern[str]
    like: str
    literal: str

    def matches(self, text: str) -> bool:
        return self.regex.fullmatch(text) is not None


def compile_glob(pattern: str, *, ignore_case: bool = False) -> Glob:
    """Raises UsageError for what cannot be a pattern."""
    if not pattern or len(pattern) > _LONGEST or "\0" in pattern:
        raise UsageError(
            f"{pattern[:40]!a} is no pattern; give a name or a path, with * and ? for what may be any"
        )
    regex: list[str] = []
    like: list[str] = []
    literal: list[str] = []
    open_end = False
    at = 0
    while at < len(pattern):
        char = pattern[at]
        at += 1
        if char == "*":
            doubled = pattern.startswith("*", at)
            at += doubled
            if doubled and pattern.startswith("/", at) and (at == 2 or pattern[at - 3] == "/"):
                # `/**/` may be one slash.
                at += 1
                regex.append("(?:.*/)?")
            else:
                regex.append(".*" if doubled else "[^/]*")
            like.append("%")
            open_end = True
            continue
        if char == "?":
            regex.append("[^/]")
            like.append("_")
            open_end = True
            continue
        if char == "[" and (end := _end_of_set(pattern, at)) is not None:
            regex.append(_set(pattern[at:end]))
            like.append("_")
            open_end = True
            at = end + 1
            continue
        if char == "\\" and at < len(pattern):
            char = pattern[at]
            at += 1
        regex.append(re.escape(char))
        # What LIKE takes for something else stands for anything, and so do letters whose other case it may
        # not know.
        like.append(char if char.isascii() and char not in "%_\\" else "_")
        if not open_end:
            literal.append(char)
    try:
        compiled = re.compile("".join(regex), re.DOTALL | (re.IGNORECASE if ignore_case else 0))
    except re.error:
        raise UsageError(f"{pattern[:40]!a} is no pattern; check its brackets") from None
    roughly = re.sub("%+", "%", "".join(like))
    return Glob(pattern, compiled, roughly, "" if ignore_case else "".join(literal))


def _end_of_set(pattern: str, at: int) -> int | None:
    """The place of the closing bracket; None when there is none, and the opening one is itself meant."""
    start = at + (pattern[at : at + 1] in ("!", "^"))
    end = pattern.find("]", start + 1)
    return end if end > 0 else None


def _set(content: str) -> str:
    negated = content[:1] in ("!", "^")
    inner = content[1:] if negated else content
    escaped = re.sub(r"([\\\[\]^&~|])", r"\\\1", inner)
    return f"(?!/)[{'^' if negated else ''}{escaped}]"
