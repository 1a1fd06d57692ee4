"""Files as read-only memory: arrays that are views of a mapped file, and bounds on what a file may expand to."""

from __future__ import annotations

import math
import mmap
from pathlib import Path

import numpy as np

from kmaskformer.checkpoints.errors import CheckpointError

# Weights hardly compress. A file that claims to hold more than this many times its size is built to fill the memory.
LARGEST_EXPANSION = 20
SMALLEST_LIMIT = 16 * 2**20

MOST_DIMENSIONS = 32
LARGEST_SIZE = 2**48

DOWNLOAD_AGAIN = "The file is truncated or corrupt: download or copy it again."


def map_file(path: Path) -> np.ndarray:
    """Bytes of a file, mapped and not read: pages are loaded when they are used.

    Returns:
        `(bytes,)` uint8, read-only. Views of it keep the file mapped; it must not be overwritten meanwhile.

    Raises:
        CheckpointError: If the file is empty.
    """
    with open(path, "rb") as file:
        if file.seek(0, 2) == 0:
            raise CheckpointError(path, "a checkpoint", "an empty file", DOWNLOAD_AGAIN)
        return np.frombuffer(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ), np.uint8)


def check_expansion(path: Path | str, total: int, size: int) -> None:
    """Refuses contents that are out of proportion to the file.

    Args:
        path: The file.
        total: Bytes of all parts when unpacked.
        size: Bytes of the file.
    """
    limit = max(SMALLEST_LIMIT, LARGEST_EXPANSION * size)
    if total > limit:
        raise CheckpointError(
            path,
            f"contents of at most {limit} bytes, {LARGEST_EXPANSION} times the file's size",
            f"contents of {total} bytes in a file of {size}",
            "Weights do not compress that well: do not use this file.",
        )


def native(array: np.ndarray) -> np.ndarray:
    """The array in this machine's byte order; copied only if it is in the other."""
    return array if array.dtype.isnative else array.astype(array.dtype.newbyteorder("="))


def strided_view(
    data: np.ndarray, dtype: np.dtype, shape: object, offset: object = 0, strides: object = None
) -> np.ndarray:
    """View of elements in a buffer.

    Args:
        data: `(bytes,)` uint8.
        dtype: Type of the elements.
        shape: Sequence of sizes.
        offset: First element, counted in elements.
        strides: Sequence of distances, counted in elements; None for C order.

    Raises:
        ValueError: If a number is not a non-negative integer, or the view reaches over the buffer's end.
    """
    shape = _natural_numbers("shape", shape)
    strides = _contiguous_strides(shape) if strides is None else _natural_numbers("strides", strides)
    (offset,) = _natural_numbers("offset", (offset,))
    if len(shape) != len(strides):
        raise ValueError(f"{len(shape)} sizes, {len(strides)} strides")
    if 0 in shape:
        return np.zeros(shape, dtype)
    end = offset + sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True)) + 1
    if end * dtype.itemsize > data.size:
        raise ValueError(f"{end} elements of {dtype} are needed, {data.size // dtype.itemsize} are stored")
    return np.ndarray(shape, dtype, data, offset * dtype.itemsize, [stride * dtype.itemsize for stride in strides])


def is_sizes(values: object) -> bool:
    """Whether a value from a file is a sequence of sizes: non-negative integers, neither too many nor too large."""
    return (
        isinstance(values, tuple | list)
        and len(values) <= MOST_DIMENSIONS
        and all(type(value) is int and 0 <= value <= LARGEST_SIZE for value in values)
    )


def _contiguous_strides(shape: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(math.prod(shape[axis + 1 :]) for axis in range(len(shape)))


def _natural_numbers(what: str, values: object) -> tuple[int, ...]:
    if not is_sizes(values):
        raise ValueError(f"the {what} is not a short sequence of non-negative integers")
    return tuple(values)
