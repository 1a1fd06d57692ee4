"""Reading the arguments of pickle opcodes, with bounds."""

from __future__ import annotations

import codecs
import struct
from typing import Any

from kmaskformer.checkpoints.errors import CheckpointError
from kmaskformer.checkpoints.mapped_file import DOWNLOAD_AGAIN

# Longer byte strings hold arrays; they stay views of the file.
LONGEST_COPY = 4096
LONGEST_INTEGER = 1024


class PickleCursor:
    """A position in the bytes of a pickle.

    Args:
        data: Bytes from the pickle's first to the end of the file or record.
        source: What is read, for messages.
    """

    def __init__(self, data: memoryview, source: str) -> None:
        self.data = data
        self.source = source
        self.position = 0

    def take(self, length: int) -> memoryview:
        """The next `length` bytes."""
        left = len(self.data) - self.position
        if not 0 <= length <= left:
            raise CheckpointError(
                self.source, f"{length} more bytes of a pickle at byte {self.position}", f"{left} bytes", DOWNLOAD_AGAIN
            )
        self.position += length
        return self.data[self.position - length : self.position]

    def number(self, layout: str) -> Any:
        """A number in a layout of `struct`."""
        return struct.unpack(layout, self.take(struct.calcsize(layout)))[0]

    def line(self) -> bytes:
        """The bytes up to a newline, which is skipped."""
        length, start = 256, self.position
        while True:
            chunk = bytes(self.data[start : start + length])
            end = chunk.find(b"\n")
            if end >= 0:
                self.position += end + 1
                return chunk[:end]
            if start + length >= len(self.data):
                raise CheckpointError(self.source, "a newline in a pickle", "the end of the file", DOWNLOAD_AGAIN)
            length *= 8

    def integer(self, length: int) -> int:
        """A signed little-endian integer of `length` bytes."""
        if length > LONGEST_INTEGER:
            raise ValueError(f"an integer of {length} bytes")
        return int.from_bytes(self.take(length), "little", signed=True)

    def integer_line(self) -> int | bool:
        """An integer in decimal digits; `00` and `01` are truth values."""
        line = self.line()
        return line == b"01" if line in (b"00", b"01") else int(line.removesuffix(b"L"))

    def raw(self, length: int) -> bytes | memoryview:
        """Bytes: a copy if they are few, else a view."""
        view = self.take(length)
        return bytes(view) if length <= LONGEST_COPY else view

    def python2_text(self, length: int) -> str | memoryview:
        """A string of Python 2, which stands for text and for the bytes of arrays alike."""
        raw = self.raw(length)
        return raw.decode("latin1") if isinstance(raw, bytes) else raw

    def text(self, length: int) -> str:
        """Text in UTF-8."""
        return str(self.take(length), "utf-8", "surrogatepass")

    def quoted_line(self) -> str:
        """A string of Python 2 in quotes, with escapes."""
        line = self.line().strip()
        if len(line) < 2 or line[:1] not in (b"'", b'"') or line[:1] != line[-1:]:
            raise ValueError("a string without quotes")
        return codecs.escape_decode(line[1:-1])[0].decode("latin1")

    def escaped_line(self) -> str:
        """Text with Unicode escapes."""
        return str(self.line(), "raw-unicode-escape")
