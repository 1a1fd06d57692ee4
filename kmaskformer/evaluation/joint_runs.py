"""Joint run lengths of two label maps: what every metric here counts from."""

from __future__ import annotations

import threading

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
        The value of `first`, the value of `second`, each in its map's dtype, and the length in pixels of each run,
        int64; all `(runs,)`. Maps that change nearly everywhere come back pixel by pixel, in runs of length 1; the
        values may then be the maps' own memory.

    Raises:
        ValueError: If the maps differ in size or do not hold integers.
    """
    check_maps(first, second)
    first, second = first.reshape(-1), second.reshape(-1)
    starts = _run_starts(first, second)
    if starts.size * _DENSE > first.size:
        return first, second, np.ones(first.size, np.int64)
    lengths = np.empty_like(starts)
    np.subtract(starts[1:], starts[:-1], out=lengths[:-1])
    lengths[-1:] = first.size - starts[-1:]
    return first.take(starts), second.take(starts), lengths


def _run_starts(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Index of the first pixel of each run, `(runs,)` int64."""
    (change, other), offsets = _scratch(first.size)
    change[:1], change[first.size :] = 1, 0
    _mark_changes(first, change[1 : first.size])
    _mark_changes(second, other[1 : first.size])
    np.bitwise_or(change[1 : first.size], other[1 : first.size], out=change[1 : first.size])
    # Eight flags are one number: most are 0, and to look for the others is a third faster than for single flags.
    words = change.view(np.uint64)
    places = np.flatnonzero(np.not_equal(words, 0, out=other[: words.size].view(bool)))
    starts = np.flatnonzero(np.not_equal(words.take(places).view(np.uint8), 0))
    # `starts` counts within the words that are left; each of them has moved by the words before it that are not.
    moved = 8 * places - offsets[: places.size]
    starts += moved.take(starts >> 3)
    return starts


def _mark_changes(values: np.ndarray, out: np.ndarray) -> None:
    """Makes bytes of `out` other than 0 where a value differs from the one before it."""
    if values.itemsize == 1:
        # Twice as fast as a comparison.
        values = values.view(np.uint8)
        np.bitwise_xor(values[1:], values[:-1], out=out)
    else:
        np.not_equal(values[1:], values[:-1], out=out.view(bool))


_buffers = threading.local()


def _scratch(size: int) -> tuple[np.ndarray, np.ndarray]:
    """Two rows of `size` bytes, rounded up to a multiple of 8, and 0, 8, 16, ...

    They are kept for the largest size so far, as fresh memory would cost as much as the rest. Each thread has its own.
    """
    size = -(-size // 8) * 8
    if getattr(_buffers, "size", -1) < size:
        _buffers.size, _buffers.flags, _buffers.offsets = size, np.empty((2, size), np.uint8), np.arange(0, size, 8)
    return _buffers.flags[:, :size], _buffers.offsets


def add_to_cells(counts: np.ndarray, cells: np.ndarray, lengths: np.ndarray) -> None:
    """`counts.flat[cells[i]] += lengths[i]` for every i, in place; `counts` is contiguous int64."""
    if cells.size < counts.size:
        np.add.at(counts.reshape(-1), cells, lengths)
        return
    # Faster for many cells. Sums up to 2**53 are exact in its float64.
    sums = np.bincount(cells, lengths, minlength=counts.size)
    counts += sums.astype(np.int64).reshape(counts.shape)


def check_maps(first: np.ndarray, second: np.ndarray) -> None:
    """Raises a `ValueError` unless a true and a predicted map have one size and hold integers."""
    if first.shape != second.shape:
        raise ValueError(
            "Prediction and truth must have the same size; bring the prediction to the image's original size. "
            f"Received: prediction {second.shape}, truth {first.shape}"
        )
    for array in (first, second):
        if array.dtype.kind not in "iub":
            raise ValueError(f"Maps must hold integers (take the argmax of scores). Received: dtype {array.dtype}")
