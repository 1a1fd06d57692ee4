"""Files that are there whole or not at all."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def written_whole(path: str | os.PathLike) -> Iterator[Path]:
    """A path to write to, which becomes `path` when all is written; after an error or interruption `path` is untouched.

    Its name begins with a dot, so that no pattern for the files of a folder finds it.
    """
    path = Path(path)
    partial = path.with_name(f".partial_{path.name}")
    try:
        yield partial
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


@contextlib.contextmanager
def written_to_disk(path: str | os.PathLike) -> Iterator[Path]:
    """As `written_whole`, and a power cut does not undo it."""
    with written_whole(path) as partial:
        yield partial
        sync(partial)
    sync(Path(path).parent)


def sync(path: Path) -> None:
    """Makes sure that a file's or folder's content is on disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
