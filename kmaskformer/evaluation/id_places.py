"""Places of many values in a short list of ids."""

from __future__ import annotations

import numpy as np

_MULTIPLIERS = (0x9E3779B1, 0x85EBCA77, 0xC2B2AE3D, 0x27D4EB2F, 0x165667B1)
"""Odd, with bits all over: primes that hash functions use. A few suffice to find one that keeps the ids apart."""


def places_of(values: np.ndarray, ids: np.ndarray) -> np.ndarray:
    """Index into `ids` of each value; `len(ids)` where it is not among them.

    The ids get a small table in which no two share a slot, so that a look-up is a product, a shift and two reads; the
    binary search that stands in where no such table is found takes longer.

    Args:
        values: `(n,)` integers or booleans.
        ids: `(m,)` distinct int64.

    Returns:
        `(n,)` indices in 0..m.
    """
    unsigned = np.uint64 if values.itemsize == 8 else np.uint32
    keys = values.view(unsigned) if values.itemsize == unsigned().itemsize else values.astype(unsigned)
    known = ids.astype(unsigned)
    bits = min(2 * ids.size.bit_length() + 1, 16)
    numbers = np.arange(ids.size)
    for multiplier in _MULTIPLIERS:
        table = np.full(1 << bits, ids.size, np.intp)
        slots = _slots(known, multiplier, bits)
        table[slots] = numbers
        if np.array_equal(table[slots], numbers):
            return _where_equal(table.take(_slots(keys, multiplier, bits)), values, ids)
    order = np.argsort(ids)
    return _where_equal(np.append(order, ids.size).take(np.searchsorted(ids, values, sorter=order)), values, ids)


def _slots(keys: np.ndarray, multiplier: int, bits: int) -> np.ndarray:
    # The product wraps; its upper bits depend on all bits of the key.
    width = 8 * keys.itemsize
    slots = keys * keys.dtype.type(multiplier if width == 32 else multiplier * 0x1_0000_0001)
    slots >>= width - bits
    return slots


def _where_equal(places: np.ndarray, values: np.ndarray, ids: np.ndarray) -> np.ndarray:
    """`places`, but `len(ids)` for each value that is not the id at its place."""
    other = np.append(ids, -1).take(places) != values
    return np.where(other, ids.size, places) if other.any() else places
