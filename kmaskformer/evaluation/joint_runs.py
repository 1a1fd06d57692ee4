"""Joint run lengths of two label maps: what every metric here counts from."""

from __future__ import annotations

import functools
import os
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np

_DENSE = 4
"""Runs of fewer pixels than this on average, as in noise, cost more than counting pixel by pixel."""


def joint_runs(first: np.ndarray, second: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Cuts two maps, read row by row, into runs over which both are constant.

    Label maps are constant over long stretches, so two comparisons of neighbours in the maps' own small dtype leave
    few runs, and everything that follows (checks, look-ups, counting) costs per run instead of per pixel.

    Args:
        first: `(height, width)` integers.
        second: `(height, width)` integers.

    Returns:
        The value of `first`, the value of `second` and the length in pixels of each run, each `(runs,)` int64. Maps
        that change nearly everywhere come back pixel by pixel, in runs of length 1.

    Raises:
        ValueError: If the maps differ in size or do not hold integers.
    """
    check_maps(first, second)
    first, second = first.reshape(-1), second.reshape(-1)
    starts = _run_starts(first, second)
    if starts.size * _DENSE > first.size:
        return first.astype(np.int64), second.astype(np.int64), np.ones(first.size, np.int64)
    lengths = np.empty_like(starts)
    np.subtract(starts[1:], starts[:-1], out=lengths[:-1])
    lengths[-1:] = first.size - starts[-1:]
    return first[starts].astype(np.int64), second[starts].astype(np.int64), lengths


def _run_starts(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Index of the first pixel of each run, `(runs,)` int64."""
    change, other = _scratch(first.size)
    change[:1], change[first.size :] = True, False
    inner, inner_other = change[1 : first.size], other[1 : first.size]
    np.not_equal(first[1:], first[:-1], out=inner)
    np.not_equal(second[1:], second[:-1], out=inner_other)
    np.logical_or(inner, inner_other, out=inner)
    # Eight flags are one number: most are 0, and to look for the others is a third faster than for single flags.
    words = change.view(np.uint64)
    places = np.flatnonzero(np.not_equal(words, 0, out=other[: words.size]))
    within = np.flatnonzero(words[places].view(bool))
    return places[within >> 3] * 8 + (within & 7)


_buffers = threading.local()


def _scratch(size: int) -> np.ndarray:
    """Two rows of at least `size` bools, a multiple of 8, kept for the thread: fresh memory would cost as much."""
    size = -(-size // 8) * 8
    buffer = getattr(_buffers, "flags", None)
    if buffer is None or buffer.shape[1] != size:
        buffer = _buffers.flags = np.empty((2, size), bool)
    return buffer


def joint_runs_of_batch(first: np.ndarray, second: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """`joint_runs` of each image of a batch `(images, height, width)`, on all cores; NumPy's loops run in parallel."""
    check_maps(first, second)
    return _pool().map(joint_runs, first, second)


@functools.cache
def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(os.cpu_count(), thread_name_prefix="joint_runs")


def add_counts(counts: np.ndarray, rows: np.ndarray, columns: np.ndarray, lengths: np.ndarray) -> None:
    """`counts[rows[i], columns[i]] += lengths[i]` for every i, in place; `counts` is a contiguous int64 matrix."""
    cells = rows * counts.shape[1] + columns
    if cells.size < counts.size:
        np.add.at(counts.reshape(-1), cells, lengths)
        return
    # Faster for many cells. Sums up to 2**53 are exact in its float64.
    sums = np.bincount(cells, lengths, minlength=counts.size)
    counts += sums.astype(np.int64).reshape(counts.shape)


def check_maps(first: np.ndarray, second: np.ndarray) -> None:
    """Raises a `ValueError` unless both maps have one size and hold integers."""
    if first.shape != second.shape:
        raise ValueError(
            "Prediction and truth must have the same size; bring the prediction to the image's original size. "
            f"Received: {first.shape} and {second.shape}"
        )
    for array in (first, second):
        if array.dtype.kind not in "iub":
            raise ValueError(f"Maps must hold integers (take the argmax of scores). Received: dtype {array.dtype}")
