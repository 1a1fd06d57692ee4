"""Files that are there whole or not at all."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator, Sequence
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


def append_whole(path: Path, text: str) -> None:
    """Appends to a file; where it cannot be written to the end, on a full disk, the file is as it was."""
    size = path.stat().st_size if path.exists() else 0
    try:
        with path.open("ab") as file:
            file.write(text.encode())
    except OSError:
        if path.exists():
            os.truncate(path, size)
        raise


@contextlib.contextmanager
def files_written_whole(folder: Path, optional: Sequence[str] = ()) -> Iterator[Path]:
    """A folder to write files to, which are moved into `folder` when all are written; others there stay.

    Args:
        folder: An existing folder; after an error or interruption it is as it was.
        optional: Names of files of `folder` that are removed if none of the name was written.
    """
    # Inside the folder, which may be a file system of its own, so that moving is renaming.
    with tempfile.TemporaryDirectory(dir=folder, prefix=".saving-") as aside:
        yield Path(aside)
        written = sorted(path.name for path in Path(aside).iterdir())
        for name in set(optional).difference(written):
            (folder / name).unlink(missing_ok=True)
        for name in written:
            os.replace(Path(aside) / name, folder / name)


def check_can_write(path: str | os.PathLike) -> None:
    """Makes the folder of a file that is to be written, and tries to open the file; its content stays.

    To be called before the work whose result is to be written there.

    Raises:
        OSError: If it cannot be written.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    is_new = not path.exists()
    path.open("ab").close()
    if is_new:
        path.unlink()


def sync(path: Path) -> None:
    """Makes sure that a file's or folder's content is on disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
