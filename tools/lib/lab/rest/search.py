"""The engine's search language, as far as clients use it: `name=a* and cluster=Default`, or words."""

from __future__ import annotations

import fnmatch
import re
import shlex
from collections.abc import Mapping

from lab.engine.errors import bad_request

TERM = re.compile(r"^([A-Za-z_.]+)\s*(!=|=)\s*(.*)$", re.DOTALL)


def matches(search: str | None, facts: Mapping[str, str | None], *, case_sensitive: bool = False) -> bool:
    """Whether an object with these facts is found. Terms are joined by `and` and `or` (`and` binds closer);
    a term without `=` is a word that any fact contains. Raises Refused (400) for what cannot be parsed."""
    if search is None or not search.strip():
        return True
    try:
        words = shlex.split(re.sub(r"\s*(!=|=)\s*", r"\1", search))
    except ValueError as error:
        raise bad_request(f"The search expression is not valid: {error}") from None
    groups: list[list[str]] = [[]]
    for word in words:
        if word.lower() == "or":
            groups.append([])
        elif word.lower() != "and":
            groups[-1].append(word)
    return any(all(_term(word, facts, case_sensitive) for word in group) for group in groups if group)


def _term(word: str, facts: Mapping[str, str | None], case_sensitive: bool) -> bool:
    found = TERM.match(word)
    if not found:
        return any(word.lower() in (value or "").lower() for value in facts.values())
    name, operator, wanted = found.groups()
    if name not in facts:
        raise bad_request(f"The search expression is not valid: there is no field {name}")
    value = facts[name] or ""
    if not case_sensitive:
        value, wanted = value.lower(), wanted.lower()
    # Square brackets are no wildcards of the engine's.
    pattern = wanted.replace("[", "[[]")
    return fnmatch.fnmatchcase(value, pattern) == (operator == "=")
