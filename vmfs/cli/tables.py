"""Text for people: aligned columns, and names that cannot play tricks on a terminal."""

from __future__ import annotations

from collections.abc import Sequence

from rich.cells import cell_len


def printable(text: str) -> str:
    """The text with what a terminal would obey, or would not show, escaped."""
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in text)


def format_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Columns as wide as their widest cell; those whose heading begins with '>' are set to the right."""
    right = [title.startswith(">") for title in header]
    lines = [
        [title.removeprefix(">") for title in header],
        *([printable(cell) for cell in row] for row in rows),
    ]
    widths = [max(map(_width, column)) for column in zip(*lines, strict=True)]

    def fit(cell: str, width: int, to_right: bool) -> str:
        fill = " " * (width - _width(cell))
        return fill + cell if to_right else cell + fill

    return "\n".join("  ".join(map(fit, line, widths, right)).rstrip() for line in lines)


def _width(text: str) -> int:
    """In columns of a terminal; some characters take two."""
    return len(text) if text.isascii() else cell_len(text)


def count(number: int, thing: str) -> str:
    """`1 point`, `2 points`."""
    return f"{number} {thing}" if number == 1 else f"{number} {thing}s"
