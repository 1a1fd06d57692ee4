"""Names of files that are no UTF-8, as text that can be printed, encoded and written."""

from __future__ import annotations


def printable(text: str) -> str:
    """The text, in which bytes of a file name that are no UTF-8 stand as `\\udcff`; any other comes out as it is."""
    return text.encode(errors="backslashreplace").decode()
