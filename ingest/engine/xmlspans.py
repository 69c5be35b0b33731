"""XML from strangers, read with the place of everything in it, so that a few values can be changed and the
rest stays as it is, byte for byte.

No document type, no entities, no more than MAX_SIZE bytes, MAX_DEPTH levels and MAX_ELEMENTS elements: what
is within these is read in time and memory proportional to its length.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import NamedTuple
from xml.parsers.expat import ExpatError
from xml.sax.saxutils import escape, quoteattr

from defusedxml.common import DefusedXmlException
from defusedxml.ElementTree import DefusedXMLParser, ParseError

MAX_SIZE = 16 << 20
"""Bytes. An engine's OVF is some 20 KB, and as much again for each snapshot of the VM."""
MAX_DEPTH = 40
MAX_ELEMENTS = 200_000

_BOM = b"\xef\xbb\xbf"
_DECLARATION = re.compile(rb"<\?xml\s[^>]*?encoding\s*=\s*[\"']([^\"']*)[\"'][^>]*\?>")
_START_TAG = re.compile(
    rb"<(?P<name>[^\s/>]+)(?P<attributes>(?:\s+[^\s=/>]+\s*=\s*(?:\"[^\"]*\"|'[^']*'))*)\s*(?P<empty>/?)>"
)
_ATTRIBUTE = re.compile(rb"\s+([^\s=/>]+)\s*=\s*(\"[^\"]*\"|'[^']*')")
# What XML 1.0 has no way to write, not even escaped.
_UNWRITABLE = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


class XmlError(ValueError):
    """Why the text is not taken; one line."""


class Span(NamedTuple):
    """Bytes [start, end) of the text."""

    start: int
    end: int


@dataclass(slots=True)
class Element:
    """`name` is the local name. `whole` is from its `<` to its last `>`, `inner` what is between its tags;
    for `<a/>` that is empty, at the end. `text` are the characters before its first child."""

    name: str
    attributes: dict[str, str]
    """By local name."""
    attribute_spans: dict[str, Span]
    """By local name: the value with its quotes."""
    raw_name: bytes
    whole: Span
    inner: Span
    empty_tag: bool
    text: str = ""
    children: list[Element] = field(default_factory=list)

    def all(self, *path: str) -> list[Element]:
        """The elements at the end of that way down, in order."""
        found = [self]
        for name in path:
            found = [child for parent in found for child in parent.children if child.name == name]
        return found

    def first(self, *path: str) -> Element | None:
        found = self.all(*path)
        return found[0] if found else None

    def text_of(self, name: str) -> str:
        """The text of its first child of that name, without space around it; empty when there is none."""
        child = self.first(name)
        return child.text.strip() if child else ""


class Document:
    """A parsed text and the changes to make in it."""

    def __init__(self, data: bytes) -> None:
        """Raises XmlError."""
        self._data = data
        self.root = _parse(data)
        self._edits: dict[Span, bytes] = {}

    def set_text(self, element: Element | None, text: str) -> None:
        """Nothing happens where there is no such element, or when it says so already."""
        if element is None or (element.text == text and not element.children):
            return
        content = escape(_writable(text)).encode()
        if element.empty_tag:
            if content:
                tag = self._data[element.whole.start : element.whole.end].rstrip(b"/> \t\r\n")
                self._edits[element.whole] = tag + b">" + content + b"</" + element.raw_name + b">"
        else:
            self._edits[element.inner] = content

    def set_attribute(self, element: Element, name: str, value: str) -> None:
        """Nothing happens where it has no such attribute."""
        span = element.attribute_spans.get(name)
        if span is not None and element.attributes[name] != value:
            self._edits[span] = quoteattr(_writable(value)).encode()

    def remove(self, element: Element) -> None:
        self._edits[element.whole] = b""

    def to_bytes(self) -> bytes:
        pieces, at = [], 0
        # What is removed takes with it the changes inside; it begins first, or at the same place and ends
        # last.
        for span, content in sorted(self._edits.items(), key=lambda item: (item[0].start, -item[0].end)):
            if span.start < at:
                continue
            pieces += [self._data[at : span.start], content]
            at = span.end
        return b"".join([*pieces, self._data[at:]])


class _Builder:
    """Takes the parser's events. Positions are those of the expat parser below."""

    def __init__(self, data: bytes, offset: int) -> None:
        self._data = data
        self._offset = offset
        self._open: list[Element] = []
        self._texts: list[list[str]] = []
        self._count = 0
        self.parser: DefusedXMLParser | None = None
        self.root: Element | None = None

    def start(self, tag: str, attributes: dict[str, str]) -> None:
        self._count += 1
        if self._count > MAX_ELEMENTS:
            raise XmlError(f"it has more than {MAX_ELEMENTS} elements")
        if len(self._open) >= MAX_DEPTH:
            raise XmlError(f"it nests deeper than {MAX_DEPTH} levels")
        start = self._position()
        match = _START_TAG.match(self._data, start)
        if match is None:
            raise XmlError(f"the tag at byte {start} cannot be understood")
        values = {_local(name): value for name, value in attributes.items()}
        if len(values) != len(attributes):
            raise XmlError(f"the tag at byte {start} has two attributes of one name")
        spans = {}
        for found in _ATTRIBUTE.finditer(self._data, match.start("attributes"), match.end("attributes")):
            raw = found.group(1).decode()
            if raw != "xmlns" and not raw.startswith("xmlns:"):
                spans[raw.rpartition(":")[2]] = Span(*found.span(2))
        element = Element(
            name=_local(tag),
            attributes=values,
            attribute_spans=spans,
            raw_name=match.group("name"),
            whole=Span(start, match.end()),
            inner=Span(match.end(), match.end()),
            empty_tag=bool(match.group("empty")),
        )
        if self._open:
            self._open[-1].children.append(element)
        else:
            self.root = element
        self._open.append(element)
        self._texts.append([])

    def data(self, text: str) -> None:
        # Joined at the end: a comment after every letter must not cost the square of their number.
        if self._open and not self._open[-1].children:
            self._texts[-1].append(text)

    def end(self, _: str) -> None:
        element = self._open.pop()
        element.text = "".join(self._texts.pop())
        if not element.empty_tag:
            close = self._position()
            element.inner = Span(element.inner.start, close)
            element.whole = Span(element.whole.start, self._data.index(b">", close) + 1)

    def close(self) -> None:
        return

    def _position(self) -> int:
        assert self.parser is not None  # noqa: S101
        return int(self.parser.parser.CurrentByteIndex) + self._offset


def _parse(data: bytes) -> Element:
    if len(data) > MAX_SIZE:
        raise XmlError(f"it has {len(data)} bytes; at most {MAX_SIZE} are read")
    if b"\0" in data:
        # Legal in UTF-8 and nowhere in XML; the parser would try UTF-16.
        raise XmlError("it has NUL bytes, as UTF-16 has; only UTF-8 is read")
    try:
        data.decode()
    except UnicodeDecodeError as error:
        raise XmlError(f"it is not UTF-8 at byte {error.start}") from None
    offset = len(_BOM) if data.startswith(_BOM) else 0
    declared = _DECLARATION.match(data, offset)
    if declared and declared.group(1).lower() not in (b"utf-8", b"utf8", b"us-ascii", b"ascii"):
        raise XmlError(f"it says that it is {declared.group(1).decode()!a}; only UTF-8 is read")
    builder = _Builder(data, offset)
    parser = DefusedXMLParser(target=builder, encoding="utf-8", forbid_dtd=True)
    builder.parser = parser
    try:
        parser.feed(data[offset:])
        parser.close()
    except DefusedXmlException as error:
        kind = type(error).__name__.removesuffix("Forbidden").removesuffix("Reference")
        raise XmlError(
            f"it has a document type or entities of its own ({kind}), which are not read"
        ) from None
    except (ParseError, ExpatError) as error:
        raise XmlError(f"it is not well-formed XML: {error}") from None
    if builder.root is None:
        raise XmlError("it is empty")
    return builder.root


def _local(name: str) -> str:
    return name.rpartition("}")[2]


def _writable(text: str) -> str:
    return _UNWRITABLE.sub("\ufffd", text)
