"""What a metric has counted, as arrays: kept in a file, an evaluation can go on where it was cut off."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from kmaskformer.whole_files import written_whole


def check_mergeable(metric: Any, other: Any) -> None:
    """Raises a `ValueError` unless two metrics are of one kind and count the same classes, in the same order."""
    if type(other) is not type(metric):
        raise ValueError(
            f"Only metrics of one kind can be merged. Received: {type(metric).__name__} and {type(other).__name__}"
        )
    if len(other.class_names) != len(metric.class_names):
        received = f"{len(metric.class_names)} and {len(other.class_names)} classes"
        raise ValueError(f"Only scores over the same classes can be merged. Received: {received}")
    if other.class_names != metric.class_names:
        pairs = zip(metric.class_names, other.class_names, strict=True)
        index, (one, another) = next((i, pair) for i, pair in enumerate(pairs) if pair[0] != pair[1])
        raise ValueError(
            f"Only scores over the same classes can be merged. Received: class {index} {one!r} and {another!r}"
        )


def checked_state(
    state: Mapping[str, np.ndarray], expected: Mapping[str, np.ndarray], variable: Sequence[str] = ()
) -> dict[str, np.ndarray]:
    """A copy of a state, if it has the names and shapes of the expected one.

    Args:
        state: Arrays by name.
        expected: The state of a metric that has seen nothing.
        variable: Names of arrays whose first axis may have any length.

    Raises:
        ValueError: If it belongs to another metric, or to other classes.
    """
    shapes = {key: (None, *value.shape[1:]) if key in variable else value.shape for key, value in expected.items()}
    received = {
        key: (None, *np.shape(value)[1:]) if key in variable else np.shape(value) for key, value in state.items()
    }
    if received != shapes:
        raise ValueError(
            f"A state must be that of a metric of the same kind and classes, {shapes}. Received: {received}"
        )
    return {key: np.array(value, expected[key].dtype) for key, value in state.items()}


def save_state(path: str | Path, state: Mapping[str, np.ndarray]) -> None:
    """Writes a state; a reader sees the old file or the new one, never half of it."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # To an open file, for to a path NumPy would add `.npz`.
    with written_whole(path) as partial, partial.open("wb") as file:
        np.savez(file, **state)


def read_state(path: str | Path) -> dict[str, np.ndarray]:
    """Reads what `save_state` wrote.

    Raises:
        ValueError: If the file holds something else.
    """
    try:
        with np.load(path, allow_pickle=False) as arrays:
            return dict(arrays)
    # A cut-off archive is a BadZipFile; a single array (`.npy`) is none to enter and close, a TypeError.
    except (OSError, ValueError, TypeError, AttributeError, EOFError, zipfile.BadZipFile) as error:
        raise ValueError(
            f"{path}: not the state of an evaluation ({error}). Delete it to evaluate from the start."
        ) from error
