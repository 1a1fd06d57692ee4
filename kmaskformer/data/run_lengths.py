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
    counts, size = segmentation["counts"], segmentation["size"]
    runs = np.asarray(counts if isinstance(counts, list) else _runs(counts), np.int64)
    if (runs < 0).any() or runs.sum() != size[0] * size[1]:
        raise ValueError(
            f"Run lengths must add up to the mask's size, height {size[0]} x width {size[1]} = {size[0] * size[1]}. "
            f"Received: runs that add up to {runs.sum()}" + (", some of them negative" * bool((runs < 0).any()))
        )
    return np.repeat(np.arange(len(runs)) % 2 == 1, runs).reshape(size, order="F")


def _characters(value: int) -> str:
    characters = []
    while True:
        bits, value = value & 31, value >> 5
        done = value == (-1 if bits & 16 else 0)
        characters.append(chr(48 + (bits if done else bits | 32)))
        if done:
            return "".join(characters)


def _runs(text: str | bytes) -> list[int]:
    runs, value, shift = [], 0, 0
    for code in text if isinstance(text, bytes) else text.encode():
        bits = code - 48
        value |= (bits & 31) << shift
        shift += 5
        if bits & 32:
            continue
        value -= (1 << shift) if bits & 16 else 0
        runs.append(value + (runs[-2] if len(runs) > 2 else 0))
        value, shift = 0, 0
    return runs
