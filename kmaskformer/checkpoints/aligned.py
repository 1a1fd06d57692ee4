"""Arrays whose memory TensorFlow takes over instead of copying it."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import keras
import numpy as np

_ALIGNMENT = 64
"""Bytes. TensorFlow copies an array that begins elsewhere, and NumPy's own large arrays always do."""


def aligned_empty(shape: tuple[int, ...]) -> np.ndarray:
    """A float32 array of unset values."""
    return _aligned(np.empty, shape)


def aligned_zeros(shape: tuple[int, ...]) -> np.ndarray:
    """A float32 array of zeros. A large one takes no memory before something is written into it."""
    return _aligned(np.zeros, shape)


def _aligned(make: Callable[..., np.ndarray], shape: tuple[int, ...]) -> np.ndarray:
    size = 4 * math.prod(shape)
    memory = make(size + _ALIGNMENT, np.uint8)
    start = -memory.ctypes.data % _ALIGNMENT
    return memory[start : start + size].view(np.float32).reshape(shape)


def adopted(array: np.ndarray) -> Any:
    """The backend's tensor of an aligned array, without copying it where the backend is TensorFlow.

    TensorFlow copies an array twice on the usual way. It must not be written to afterwards.
    """
    if keras.backend.backend() != "tensorflow":
        return array
    import tensorflow as tf

    return tf.experimental.dlpack.from_dlpack(array.__dlpack__())
