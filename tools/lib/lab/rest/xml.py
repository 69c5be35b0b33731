"""XML as the engine speaks it."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from datetime import datetime

import defusedxml
from defusedxml.ElementTree import fromstring

from lab.engine.errors import bad_request

Value = str | int | bool | datetime | None


def element(tag: str, *children: ET.Element | None, **attributes: str | None) -> ET.Element:
    """An element; children and attributes that are None are left out."""
    made = ET.Element(tag, {name: value for name, value in attributes.items() if value is not None})
    made.extend(child for child in children if child is not None)
    return made


def leaf(tag: str, value: Value) -> ET.Element | None:
    """An element with a text; None for None."""
    if value is None:
        return None
    made = ET.Element(tag)
    if isinstance(value, bool):
        made.text = "true" if value else "false"
    elif isinstance(value, datetime):
        made.text = value.isoformat(timespec="milliseconds")
    else:
        made.text = str(value)
    return made


def reference(tag: str, entity_id: str | None, href: str | None = None) -> ET.Element | None:
    """`<tag id="…" href="…"/>`; None without an id."""
    return None if entity_id is None else element(tag, id=entity_id, href=href)


def parse(body: bytes) -> ET.Element | None:
    """A request's body; None when there is none. Raises Refused (400) for what is not XML, or hostile."""
    if not body.strip():
        return None
    try:
        root: ET.Element = fromstring(body, forbid_dtd=True)
    except (ET.ParseError, defusedxml.DefusedXmlException, ValueError) as error:
        raise bad_request(f"Request syntactically incorrect: {error}") from None
    return root


def text(root: ET.Element | None, path: str) -> str | None:
    """The text at `path` below `root`, stripped; None when there is none or it is empty."""
    found = None if root is None else root.find(path)
    return (found.text or "").strip() or None if found is not None else None


def flag(root: ET.Element | None, path: str, default: bool) -> bool:
    value = text(root, path)
    return default if value is None else value.lower() == "true"


def number(root: ET.Element | None, path: str) -> int | None:
    """Raises Refused (400) when there is a text that is not a number."""
    value = text(root, path)
    if value is None:
        return None
    try:
        return int(value)
    except ValueError:
        raise bad_request(f"{path}: {value!r} is not a number") from None


def entity_id(root: ET.Element | None, path: str) -> str | None:
    """The id attribute of the element at `path`."""
    found = None if root is None else root.find(path)
    return found.get("id") if found is not None else None


def serialize(root: ET.Element) -> bytes:
    ET.indent(root)
    return b'<?xml version="1.0" encoding="UTF-8" standalone="yes"?>\n' + ET.tostring(root) + b"\n"
