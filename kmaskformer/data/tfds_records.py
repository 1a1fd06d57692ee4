"""Random access to the examples of a prepared dataset of TensorFlow Datasets.

That library reads its record files from front to back; training on a sample drawn at random, and going on exactly where
a run stopped, need any example at any time. The places of the records follow from their lengths, which are read once.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

_HEADER = struct.Struct("<QI")
"""A TFRecord starts with its length, 8 bytes, and a checksum of it, 4 bytes; another checksum follows the data."""
_CHECKSUM_BYTES = 4


class Records:
    """The serialised examples of a split.

    Args:
        builder: A prepared builder.
        split: Name of a split, or a part of one such as `"train[:80%]"`.

    Raises:
        ValueError: If the builder's files are of a kind that has no random access.
    """

    def __init__(self, builder: Any, split: str) -> None:
        kind = builder.info.file_format.value
        if kind not in _OPENERS:
            raise ValueError(
                f"{builder.data_dir}: files must be of one of the formats {', '.join(_OPENERS)}. Received: {kind}. "
                "Prepare the dataset again in one of these."
            )
        instructions = builder.info.splits[split].file_instructions
        self._files = [_OPENERS[kind](Path(instruction.filename)) for instruction in instructions]
        self._skips = [instruction.skip for instruction in instructions]
        self._ends = np.cumsum([instruction.take for instruction in instructions])

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def __getitem__(self, index: int) -> bytes:
        if not 0 <= index < len(self):
            raise IndexError(f"`index` must lie in 0..{len(self) - 1}. Received: index={index}.")
        number = int(np.searchsorted(self._ends, index, side="right"))
        start = int(self._ends[number - 1]) if number else 0
        return self._files[number](self._skips[number] + index - start)


class _RecordFile:
    """Record by number, of a TFRecord file; the file is opened for each, so that threads do not share a position."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._offsets, self._lengths = _places(path)

    def __call__(self, number: int) -> bytes:
        with self._path.open("rb") as file:
            file.seek(int(self._offsets[number]))
            return file.read(int(self._lengths[number]))


class _ArrayRecordFile:
    """Record by number, of an ArrayRecord file."""

    def __init__(self, path: Path) -> None:
        from array_record.python.array_record_module import ArrayRecordReader

        self._reader = ArrayRecordReader(str(path))

    def __call__(self, number: int) -> bytes:
        return self._reader.read([number])[0]


_OPENERS: dict[str, Callable[[Path], Callable[[int], bytes]]] = {
    "tfrecord": _RecordFile,
    "array_record": _ArrayRecordFile,
}


def _places(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Where each record's data begins, and how long it is."""
    size = path.stat().st_size
    offsets, lengths, position = [], [], 0
    with path.open("rb") as file:
        while position < size:
            file.seek(position)
            header = file.read(_HEADER.size)
            length = _HEADER.unpack(header)[0] if len(header) == _HEADER.size else size
            end = position + _HEADER.size + length + _CHECKSUM_BYTES
            if end > size:
                raise ValueError(f"{path}: the file ends within a record, it is damaged. Prepare the dataset again.")
            offsets.append(position + _HEADER.size)
            lengths.append(length)
            position = end
    return np.asarray(offsets, np.int64), np.asarray(lengths, np.int64)
