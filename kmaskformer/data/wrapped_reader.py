"""Readers made of other readers, and what a reader may tell besides its samples."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from kmaskformer.structures import DatasetInfo


class WrappedReader:
    """A reader that passes on what another one has; subclasses say what they change, `reader[index]` at least.

    Args:
        reader: The dataset.
    """

    def __init__(self, reader: Any) -> None:
        self.info: DatasetInfo = reader.info
        self.has_overlaps = has_overlaps(reader)
        self._reader = reader

    def __len__(self) -> int:
        return len(self._reader)

    def inner_index(self, index: int) -> int:
        """The sample of the other reader that a sample is made of."""
        return index

    def files(self, index: int) -> tuple[Path, ...]:
        """The files of a sample, if the reader tells."""
        return files_of(self._reader, self.inner_index(index))

    def image_size(self, index: int) -> tuple[int, int] | None:
        """Height and width of a sample's image, if the reader knows them without reading it."""
        return image_size_of(self._reader, self.inner_index(index))


def innermost(reader: Any, index: int) -> tuple[Any, int]:
    """The reader that wraps no other, and which of its samples a sample is made of."""
    while isinstance(reader, WrappedReader):
        reader, index = reader._reader, reader.inner_index(index)
    return reader, index


def options_of(reader: Any, index: int) -> tuple:
    """What a sample depends on besides its files and label space.

    That is the kinds of the readers, one in the other, those of their options that are plain values or tuples of
    such, and which of their samples it is.
    """
    options = {name: value for name, value in vars(reader).items() if _is_option(value)}
    own = (type(reader).__name__, len(reader), index, sorted(options.items()))
    if not isinstance(reader, WrappedReader):
        return own
    return (own, options_of(reader._reader, reader.inner_index(index)))


def _is_option(value: Any) -> bool:
    """Whether it is a plain value, or a tuple of such as a size is; what a reader has found stands in lists."""
    plain = (bool, int, float, str, type(None))
    if isinstance(value, tuple):
        return all(isinstance(item, plain) for item in value)
    return isinstance(value, (*plain, Path))


def has_overlaps(reader: Any) -> bool:
    """Whether the segments of a reader's samples may overlap, so that the samples have `membership`."""
    return getattr(reader, "has_overlaps", False)


def image_size_of(reader: Any, index: int) -> tuple[int, int] | None:
    """Height and width of a sample's image, or None where the reader does not know them without reading it."""
    return reader.image_size(index) if hasattr(reader, "image_size") else None


def files_of(reader: Any, index: int) -> tuple[Path, ...]:
    """The files that a sample is read from, the image first; empty where the reader does not tell."""
    return reader.files(index) if hasattr(reader, "files") else ()
