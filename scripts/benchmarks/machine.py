"""What the machine can do at best: a large matrix product and a memory copy, with which times are compared."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import numpy as np

SIDE = 2048
COPY_BYTES = 256 * 2**20


def median_seconds(function: Callable[[], object], repeats: int = 5) -> float:
    """Median time of a call, after one that is not counted."""
    function()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        function()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def matrix_rate(dtype: str = "float32") -> float:
    """Floating point operations a second of a product of two square matrices, by TensorFlow."""
    import tensorflow as tf

    matrix = tf.cast(tf.random.stateless_uniform((SIDE, SIDE), [1, 2]), dtype)
    return 2 * SIDE**3 / median_seconds(lambda: tf.matmul(matrix, matrix).numpy())


def copy_rate() -> float:
    """Bytes a second that are read and written by a copy of memory that no cache holds."""
    source = np.ones(COPY_BYTES, np.uint8)
    target = np.empty_like(source)
    return 2 * COPY_BYTES / median_seconds(lambda: np.copyto(target, source))
