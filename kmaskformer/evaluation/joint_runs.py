"""Joint run lengths of two label maps: what every metric here counts from."""

from __future__ import annotations

import numpy as np


def joint_runs(first: np.ndarray, second: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Cuts two maps, read row by row, into runs over which both are constant.

    Label maps are constant over long stretches, so two comparisons of neighbours in the maps' own small dtype leave
    few runs, and everything that follows (checks, look-ups, counting) costs per run instead of per pixel.

    Args:
        first: `(height, width)` integers.
        second: `(height, width)` integers.

    Returns:
        The value of `first`, the value of `second` and the length in pixels of each run, each `(runs,)` int64.

    Raises:
        ValueError: If the maps differ in size or do not hold integers.
    """
    _check(first, second)
    first, second = first.reshape(-1), second.reshape(-1)
    change = first[1:] != first[:-1]
    change |= second[1:] != second[:-1]
    starts = np.concatenate([np.zeros(min(first.size, 1), np.int64), np.flatnonzero(change) + 1])
    lengths = np.diff(starts, append=first.size)
    return first[starts].astype(np.int64), second[starts].astype(np.int64), lengths


def _check(first: np.ndarray, second: np.ndarray) -> None:
    if first.shape != second.shape:
        raise ValueError(
            "Prediction and truth must have the same size; bring the prediction to the image's original size. "
            f"Received: {first.shape} and {second.shape}"
        )
    for array in (first, second):
        if array.dtype.kind not in "iub":
            raise ValueError(f"Maps must hold integers (take the argmax of scores). Received: dtype {array.dtype}")
