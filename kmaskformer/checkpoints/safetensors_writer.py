"""Writing safetensors files with NumPy alone, one array at a time."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np

DTYPES = {"float32": "F32", "float16": "F16", "float64": "F64", "int64": "I64", "int32": "I32", "bool": "BOOL"}


class LazyArray(NamedTuple):
    """An array that is made when it is written, so that only one exists at a time."""

    shape: tuple[int, ...]
    dtype: str
    make: Callable[[], np.ndarray]


def write_safetensors(path: str | Path, arrays: Mapping[str, LazyArray]) -> None:
    """Write named arrays in the layout of safetensors: length of the header, header in JSON, data.

    Args:
        path: File to write.
        arrays: What to write, in this order.

    Raises:
        ValueError: If an array's type cannot be stored, or `make` returns another shape than announced.
    """
    header, offset = {"__metadata__": {"format": "pt"}}, 0
    for name, array in arrays.items():
        if array.dtype not in DTYPES:
            raise ValueError(f"{name}: cannot store {array.dtype}; expected one of {', '.join(DTYPES)}")
        size = math.prod(array.shape) * np.dtype(array.dtype).itemsize
        header[name] = {
            "dtype": DTYPES[array.dtype],
            "shape": list(array.shape),
            "data_offsets": [offset, offset + size],
        }
        offset += size
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # data begin at a multiple of 8, so that a reader may map them
    with Path(path).open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name, array in arrays.items():
            value = np.ascontiguousarray(array.make(), dtype=array.dtype)
            if value.shape != array.shape and array.shape:
                raise ValueError(f"{name}: announced with shape {array.shape}, made with {value.shape}")
            file.write(value.tobytes() if value.ndim == 0 else value.data.cast("B"))
