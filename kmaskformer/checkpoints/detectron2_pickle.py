"""Detectron2's `.pkl` files, of Python 3 or 2: a plain pickle of NumPy arrays."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from kmaskformer.checkpoints.errors import CheckpointError
from kmaskformer.checkpoints.mapped_file import DOWNLOAD_AGAIN
from kmaskformer.checkpoints.pickle_machine import run_pickle
from kmaskformer.checkpoints.restricted_pickle import allowed_globals
from kmaskformer.checkpoints.state_dict import state_dict_arrays
from kmaskformer.checkpoints.torch_files import read_pickled_storage
from kmaskformer.checkpoints.torch_tensors import Storage, torch_globals


def read_detectron2_pickle(path: Path, data: np.ndarray) -> dict[str, np.ndarray]:
    """Named arrays of a plain pickle; views of the file, except where text stands for bytes.

    The file holds `{"model": {name: array}, "__author__": ...}`, or only the inner dictionary. Some converters leave
    PyTorch's tensors in place of arrays: those are read as well.

    Args:
        path: The file, for messages.
        data: Its bytes, `(bytes,)` uint8.

    Raises:
        CheckpointError: If the file is truncated, corrupt, hostile or no dictionary of arrays.
    """

    def load_storage(content: Any) -> Storage:
        return read_pickled_storage(str(path), content)

    allowed = {**allowed_globals(data.size), **torch_globals(load_from_bytes=load_storage)}
    content, end = run_pickle(memoryview(data), str(path), allowed)
    if end != data.size:
        raise CheckpointError(path, "one pickle", f"{data.size - end} bytes after it", DOWNLOAD_AGAIN)
    return state_dict_arrays(path, content, data.size)
