"""The text that LVM2 keeps its metadata in: `key = value` and `section { … }`, nested.

Values are numbers, strings and lists of them (lib/config/config.c of LVM2, and lvm.conf(5)).
"""

from __future__ import annotations

import re
from collections.abc import Iterator

Scalar = int | float | str
Value = Scalar | list[Scalar] | dict[str, "Value"]
Section = dict[str, Value]

MAX_TOKENS = 1_000_000
"""Those of about twenty thousand logical volumes."""
MAX_DEPTH = 16
MAX_DIGITS = 20

_TOKEN = re.compile(
    r"""(?P<space>[ \t\r\n\0]+|\#[^\n]*)
      | "(?P<string>(?:[^"\\]|\\.)*)"
      | (?P<sign>[{}=\[\],])
      | (?P<word>[A-Za-z0-9_.+\-/@:]+)""",
    re.VERBOSE | re.DOTALL,
)
_NUMBER = re.compile(r"[+-]?\d+(\.\d*)?")
_ESCAPED = re.compile(r"\\(.)", re.DOTALL)


class TextError(Exception):
    """The text is not metadata. Says where and why."""


class _Token:
    __slots__ = ("at", "kind", "text")

    def __init__(self, kind: str, text: str, at: int) -> None:
        self.kind = kind
        self.text = text
        self.at = at


def parse(text: str) -> Section:
    """The whole text as nested sections. A key that is there twice has its first value. Raises TextError."""
    return _section(_Tokens(text), 0)


class _Tokens:
    def __init__(self, text: str) -> None:
        self._text = text
        self._walk = self._tokens()

    def next(self) -> _Token | None:
        return next(self._walk, None)

    def need(self) -> _Token:
        token = self.next()
        if token is None:
            raise TextError("it ends too early")
        return token

    def _tokens(self) -> Iterator[_Token]:
        at = count = 0
        end = len(self._text)
        while at < end:
            match = _TOKEN.match(self._text, at)
            if match is None:
                raise TextError(f"character {at} makes no sense")
            kind = match.lastgroup or ""
            if kind != "space":
                count += 1
                if count > MAX_TOKENS:
                    raise TextError(f"it has more than {MAX_TOKENS} words")
                yield _Token(kind, match[kind], at)
            at = match.end()


def _section(tokens: _Tokens, depth: int) -> Section:
    if depth > MAX_DEPTH:
        raise TextError(f"its sections are nested more than {MAX_DEPTH} deep")
    found: Section = {}
    while (token := tokens.next()) is not None:
        if token.kind == "sign" and token.text == "}" and depth:
            return found
        if token.kind not in ("word", "string"):
            raise TextError(f"character {token.at}: a name was expected")
        sign = tokens.need()
        if sign.kind == "sign" and sign.text == "{":
            found.setdefault(token.text, _section(tokens, depth + 1))
        elif sign.kind == "sign" and sign.text == "=":
            found.setdefault(token.text, _value(tokens))
        else:
            raise TextError(f"character {sign.at}: = or {{ was expected")
    if depth:
        raise TextError("it ends too early")
    return found


def _value(tokens: _Tokens) -> Value:
    token = tokens.need()
    if not (token.kind == "sign" and token.text == "["):
        return _scalar(token)
    found: list[Scalar] = []
    while True:
        token = tokens.need()
        if token.kind == "sign" and token.text == "]":
            return found
        if token.kind == "sign" and token.text == ",":
            continue
        found.append(_scalar(token))


def _scalar(token: _Token) -> Scalar:
    if token.kind == "string":
        return _ESCAPED.sub(r"\1", token.text)
    if token.kind == "word":
        match = _NUMBER.fullmatch(token.text)
        if match is None:
            return token.text
        if len(token.text) <= MAX_DIGITS:
            return float(token.text) if match[1] else int(token.text)
    raise TextError(f"character {token.at}: a value was expected")
