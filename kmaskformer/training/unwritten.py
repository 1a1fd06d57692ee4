"""What a run does about a file that cannot be written, on a full disk above all."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def warned_of(path: Path, consequence: str) -> Iterator[None]:
    """Makes a warning of an error in writing `path`, which the run can do without; what was going on ends there.

    Args:
        path: The file.
        consequence: What its lack means, a sentence.
    """
    try:
        yield
    except OSError as error:
        warnings.warn(f"{path}: cannot be written: {error}. {consequence}", RuntimeWarning, stacklevel=3)


@contextlib.contextmanager
def needed_at_the_end(path: Path) -> Iterator[None]:
    """Says what to do where `path`, a result of the run, cannot be written.

    Raises:
        OSError: In place of another; its message names the file.
    """
    try:
        yield
    except OSError as error:
        remedy = "Free space if the disk is full, and start again with --resume: it goes on from the newest checkpoint."
        raise OSError(f"{path}: cannot be written: {error}. {remedy}") from error
