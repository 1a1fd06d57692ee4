"""What `--input` may name: files, folders and patterns, of images and videos."""

from __future__ import annotations

import collections
import glob
import itertools
import os
from collections.abc import Callable, Collection, Sequence
from pathlib import Path

from PIL import Image

VIDEO_SUFFIXES = (".avi", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".webm")


def is_video(path: Path) -> bool:
    """Whether the name is that of a video."""
    return path.suffix.lower() in VIDEO_SUFFIXES


def list_inputs(sources: Sequence[str], output: Path | None = None) -> list[Path]:
    """The files that are named, each once.

    Args:
        sources: Files, whatever their names; folders, of which images and videos count and subfolders do not; and
            patterns with `*`, `?`, `[...]` or `**`, of which likewise.
        output: Folder of results. What a pattern finds there is left out, for it may be of an earlier run; a file or
            folder that is named is meant.

    Returns:
        The files, in the order of `sources` and sorted within each.

    Raises:
        FileNotFoundError: If a source names no file.
    """
    found = [path for source in sources for path in _files_of(source, output)]
    return list(dict.fromkeys(found))


def result_names(paths: Sequence[Path], reserved: Collection[str] = ()) -> list[str]:
    """A name for the results of each file: the shortest that no other has.

    That is its stem; where two have the same, its whole name; where two have the same, its path with `_` between the
    parts.

    Args:
        paths: The files, each once.
        reserved: Names that other files have.
    """
    ways: tuple[Callable[[Path], str], ...] = (lambda path: path.stem, lambda path: path.name, _whole_path)
    names: dict[Path, str] = {}
    for name_of in ways:
        waiting = [path for path in paths if path not in names]
        counts = collections.Counter(map(name_of, waiting))
        taken = {*names.values(), *reserved}
        names |= {path: name_of(path) for path in waiting if counts[name_of(path)] == 1 and name_of(path) not in taken}
    return [names.get(path, f"{number}_{path.name}") for number, path in enumerate(paths)]


def _files_of(source: str, output: Path | None) -> list[Path]:
    path = Path(source)
    if path.is_file():
        return [path]
    inside = path.iterdir() if path.is_dir() else map(Path, glob.glob(source, recursive=True))
    files = sorted(file for file in inside if file.is_file() and _is_picture(file))
    if not files:
        raise FileNotFoundError(f"{source}: no image file, and no folder or pattern that holds any")
    if path.is_dir() or output is None or output.resolve() in _fixed_part(path).resolve().parents:
        return files
    images = [file for file in files if output.resolve() not in file.resolve().parents]
    if not images:
        raise FileNotFoundError(
            f"{source}: no image file outside {output}, the folder of --output; it must be another folder"
        )
    return images


def _fixed_part(pattern: Path) -> Path:
    """The folder that a pattern names before its first wildcard."""
    return Path(*itertools.takewhile(lambda part: not glob.has_magic(part), pattern.parts))


def _is_picture(path: Path) -> bool:
    return is_video(path) or path.suffix.lower() in Image.registered_extensions()


def _whole_path(path: Path) -> str:
    return "_".join(part for part in path.parts if part not in (os.sep, os.curdir, os.pardir))
