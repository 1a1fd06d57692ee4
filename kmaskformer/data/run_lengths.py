"""COCO's run lengths of binary masks.

Runs go down the columns and start with a (possibly empty) run of zeros. In the compressed form, from the fourth on,
each is stored as the difference to the run two before; five bits a character, lowest first, offset 48, bit 6 = more
follow.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np


def encode_mask(mask: np.ndarray) -> dict[str, Any]:
    """COCO's compressed run lengths of a `(height, width)` bool mask, as pycocotools writes and reads them."""
    flat = np.asarray(mask).astype(bool).reshape(-1, order="F")
    borders = np.flatnonzero(flat[1:] != flat[:-1]) + 1
    runs = np.diff(np.concatenate([[0] if not flat.size or not flat[0] else [0, 0], borders, [flat.size]]))
    deltas = runs.copy()
    deltas[3:] -= runs[1:-2]
    return {"size": [int(side) for side in mask.shape], "counts": "".join(_characters(int(d)) for d in deltas)}


def decode_mask(segmentation: Mapping[str, Any]) -> np.ndarray:
    """The `(height, width)` bool mask of COCO run lengths, compressed (text) or not (a list).

    Raises:
        ValueError: If the runs are not numbers from 0 on that add up to the mask's size.
    """
    runs, size = check_run_lengths(segmentation), segmentation["size"]
    return np.repeat(np.arange(len(runs)) % 2 == 1, runs).reshape(size, order="F")


def check_run_lengths(segmentation: Mapping[str, Any]) -> np.ndarray:
    """The run lengths of a mask, `(runs,)` int64, if they are such.

    Raises:
        ValueError: As `decode_mask`.
    """
    counts, size = segmentation["counts"], segmentation["size"]
    if not isinstance(counts, list | str | bytes) or not _is_size(size):
        raise ValueError(
            "Run lengths need `counts`, text or a list of numbers, and `size`, height and width. "
            f"Received: counts of type {type(counts).__name__}, size={size!r}"
        )
    runs = _listed_runs(counts) if isinstance(counts, list) else _runs(counts)
    if (runs < 0).any() or runs.sum() != size[0] * size[1]:
        raise ValueError(
            f"Run lengths must add up to the mask's size, height {size[0]} x width {size[1]} = {size[0] * size[1]}. "
            f"Received: runs that add up to {runs.sum()}" + (", some of them negative" * bool((runs < 0).any()))
        )
    return runs


def _is_size(size: Any) -> bool:
    return isinstance(size, list | tuple) and len(size) == 2 and all(isinstance(side, int) for side in size)


def _listed_runs(counts: list) -> np.ndarray:
    runs = np.asarray(counts)
    if runs.size and (runs.ndim != 1 or runs.dtype.kind not in "iu"):
        raise ValueError(f"Run lengths must be whole numbers. Received: {str(counts)[:80]}")
    return runs.astype(np.int64)


def _characters(value: int) -> str:
    characters = []
    while True:
        bits, value = value & 31, value >> 5
        done = value == (-1 if bits & 16 else 0)
        characters.append(chr(48 + (bits if done else bits | 32)))
        if done:
            return "".join(characters)


def _runs(text: str | bytes) -> np.ndarray:
    codes = np.frombuffer(text if isinstance(text, bytes) else text.encode(), np.uint8).astype(np.int64) - 48
    ends = np.flatnonzero(codes & 32 == 0) + 1
    if not ends.size:
        return np.zeros(0, np.int64)
    starts = np.concatenate([[0], ends[:-1]])
    places = np.arange(ends[-1]) - np.repeat(starts, ends - starts)
    runs = np.add.reduceat((codes[: ends[-1]] & 31) << 5 * places, starts)
    runs -= np.where(codes[ends - 1] & 16 != 0, 1 << 5 * (ends - starts), 0)
    runs[1::2], runs[2::2] = np.cumsum(runs[1::2]), np.cumsum(runs[2::2])
    return runs
