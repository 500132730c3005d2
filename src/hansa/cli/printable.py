"""Text that others wrote, as it may be shown: without anything that a terminal would obey."""

from __future__ import annotations


def printable(text: str) -> str:
    """The text on one line."""
    return "".join(character if character.isprintable() else " " for character in text)


def printable_lines(text: str) -> str:
    """The text with its lines."""
    return "\n".join(printable(line) for line in text.split("\n"))
