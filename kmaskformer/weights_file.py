"""Keras' `.weights.h5`, written without copying each weight twice on the way, as `Model.save_weights` does."""

from __future__ import annotations

import errno
import math
import shutil
from pathlib import Path
from typing import Any

import keras
import numpy as np

# Not public; which release of Keras has it is pinned, and a test compares the file with Keras' own.
from keras.src.saving import saving_lib

_BESIDE_A_WEIGHT = 4096
"""Bytes that the file has for each weight beside its numbers, at most; 1400 to 1900 were measured."""


def save_weights(model: keras.Model, path: str | Path) -> None:
    """Writes what `model.save_weights(path)` writes for a model without an optimizer, in two thirds of the time.

    Into the file of a compiled model Keras would put the optimizer's state, twice the weights.

    Args:
        model: A built model.
        path: File to write, `*.weights.h5`; an older one is overwritten.

    Raises:
        ValueError: If the model is not built, or `path` has another ending.
        OSError: If the disk has no room for the file; nothing is written then.
    """
    if not model.built:
        raise ValueError("The model has no weights yet: call it on an image, or build it, first.")
    if not str(path).endswith(".weights.h5"):
        raise ValueError(f"`path` must end in .weights.h5. Received: path={path}")
    _check_space(model, Path(path))
    store = _Store(path, mode="w")
    # Keras passes over what it has visited, and for the optimizer it is told so.
    visited = {id(getattr(model, "optimizer", None))}
    try:
        saving_lib._save_state(model, weights_store=store, assets_store=None, inner_path="", visited_saveables=visited)
    finally:
        store.close()


def _check_space(model: keras.Model, path: Path) -> None:
    # A full disk in the middle of writing ends the process inside HDF5, without a word.
    sizes = (math.prod(weight.shape) * np.dtype(weight.dtype).itemsize for weight in model.weights)
    needed = sum(sizes) + _BESIDE_A_WEIGHT * (len(model.weights) + 1)
    free = shutil.disk_usage(path.absolute().parent).free
    if needed > free:
        message = f"the file may take {needed} bytes, and the disk has {free} left"
        raise OSError(errno.ENOSPC, message, str(path))


class _Store(saving_lib.H5IOStore):
    """Writes float32 weights from where they lie in memory."""

    def __setitem__(self, key: str, value: Any) -> None:
        if keras.backend.backend() != "tensorflow" or str(getattr(value, "dtype", "")) != "float32":
            super().__setitem__(key, value)
            return
        if not self._h5_entry_initialized:
            self._create_h5_group(self._h5_entry_path)
        self._h5_entry_group[key] = _view(value)


def _view(value: Any) -> np.ndarray:
    import tensorflow as tf

    tensor = tf.convert_to_tensor(value)
    # On a GPU there is nothing that NumPy could look at.
    return np.from_dlpack(tensor) if "CPU" in tensor.device else tensor.numpy()
