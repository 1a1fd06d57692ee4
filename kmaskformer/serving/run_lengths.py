"""Masks as COCO writes them: run lengths down the columns, as a compressed string."""

from __future__ import annotations

from typing import Any

import numpy as np


def encode_mask(mask: np.ndarray) -> dict[str, Any]:
    """A mask in COCO's compressed form.

    Args:
        mask: `(height, width)` bool.

    Returns:
        `size` `[height, width]` and `counts`, the string that `pycocotools.mask.decode` reads.
    """
    flat = mask.ravel(order="F")
    changes = np.flatnonzero(flat[1:] != flat[:-1]) + 1
    counts = np.diff(np.concatenate([[0], changes, [flat.size]]))
    if flat.size and flat[0]:  # the first run is one of zeros
        counts = np.concatenate([[0], counts])
    return {"size": [int(side) for side in mask.shape], "counts": _compress(counts)}


def _compress(counts: np.ndarray) -> str:
    """Five bits a character, each count from the fourth on as the difference to the one before the last."""
    characters = []
    for index, count in enumerate(counts.tolist()):
        value = count - int(counts[index - 2]) if index > 2 else count
        more = True
        while more:
            bits = value & 0x1F
            value >>= 5
            more = value != (-1 if bits & 0x10 else 0)
            characters.append(chr((bits | 0x20 if more else bits) + 48))
    return "".join(characters)
