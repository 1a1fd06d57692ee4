"""Safetensors files, mapped.

References:
    https://github.com/huggingface/safetensors#format
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from kmaskformer.checkpoints.errors import CheckpointError, clip
from kmaskformer.checkpoints.mapped_file import DOWNLOAD_AGAIN, is_sizes, native, strided_view

LENGTH_BYTES = 8
# The format's own limit.
LONGEST_HEADER = 100_000_000

_DTYPES = {
    "F64": np.float64,
    "F32": np.float32,
    "F16": np.float16,
    "BF16": ml_dtypes.bfloat16,
    "I64": np.int64,
    "I32": np.int32,
    "I16": np.int16,
    "I8": np.int8,
    "U64": np.uint64,
    "U32": np.uint32,
    "U16": np.uint16,
    "U8": np.uint8,
    "BOOL": np.bool_,
}


def read_safetensors(path: Path, data: np.ndarray) -> dict[str, np.ndarray]:
    """Named arrays of a safetensors file; views of the file.

    Args:
        path: The file, for messages.
        data: Its bytes, `(bytes,)` uint8.

    Raises:
        CheckpointError: If the header is not valid, or its tensors do not cover the rest of the file exactly once.
    """
    header, content = _split(path, data)
    header.pop("__metadata__", None)
    position = 0
    for name, entry in sorted(header.items(), key=lambda item: _offsets(path, *item)):
        begin, end = _offsets(path, name, entry)
        if begin != position:
            expected = f"tensor {clip(name)} to begin at byte {position}, where the one before it ends"
            raise _corrupt(path, expected, f"its beginning at byte {begin}")
        position = end
    if position != content.size:
        raise _corrupt(path, f"{position} bytes of tensors", f"{content.size} bytes")
    return {name: _array(path, name, entry, content) for name, entry in header.items()}


def _split(path: Path, data: np.ndarray) -> tuple[dict[str, Any], np.ndarray]:
    length = int.from_bytes(data[:LENGTH_BYTES].tobytes(), "little")
    left = data.size - LENGTH_BYTES
    if not 2 <= length <= min(left, LONGEST_HEADER):
        raise _corrupt(path, f"a header of 2 to {LONGEST_HEADER} bytes", f"length {length}, with {left} bytes left")
    end = LENGTH_BYTES + length
    try:
        header = json.loads(data[LENGTH_BYTES:end].tobytes(), object_pairs_hook=_without_duplicates)
    except (ValueError, RecursionError) as error:
        raise _corrupt(path, "a header in JSON", f"{type(error).__name__}: {error}") from error
    if type(header) is not dict:
        raise _corrupt(path, "a header with names", f"a {type(header).__name__}")
    return header, data[end:]


def _without_duplicates(items: list[tuple[str, Any]]) -> dict[str, Any]:
    names = dict(items)
    if len(names) != len(items):
        raise ValueError("a name that occurs twice")
    return names


def _offsets(path: Path, name: str, entry: Any) -> tuple[int, int]:
    offsets = entry.get("data_offsets") if type(entry) is dict else None
    if not (is_sizes(offsets) and len(offsets) == 2 and offsets[0] <= offsets[1]):
        raise _corrupt(path, f"`data_offsets` of tensor {clip(name)}: begin and end", "something else")
    return offsets[0], offsets[1]


def _array(path: Path, name: str, entry: dict[str, Any], content: np.ndarray) -> np.ndarray:
    begin, end = _offsets(path, name, entry)
    code, shape = entry.get("dtype"), entry.get("shape")
    if not isinstance(code, str) or code not in _DTYPES:
        advice = "Save the weights as float32, float16 or bfloat16."
        raise CheckpointError(path, f"tensor {clip(name)} with dtype {', '.join(_DTYPES)}", clip(code), advice)
    dtype = np.dtype(_DTYPES[code])
    if not is_sizes(shape) or math.prod(shape) * dtype.itemsize != end - begin:
        raise _corrupt(path, f"tensor {clip(name)} with a shape that takes {end - begin} bytes", _shape_text(shape))
    try:
        return native(strided_view(content[begin:end], dtype.newbyteorder("<"), shape))
    except ValueError as error:  # no elements, but sides that no array can have
        raise _corrupt(path, f"tensor {clip(name)} with a possible shape", _shape_text(shape)) from error


def _shape_text(shape: Any) -> str:
    return clip(", ".join(map(clip, shape[:8]))) if type(shape) is list else clip(shape)


def _corrupt(path: Path, expected: str, found: str) -> CheckpointError:
    return CheckpointError(path, expected, found, DOWNLOAD_AGAIN)
