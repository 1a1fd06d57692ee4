"""From what a pickle holds to named arrays."""

from __future__ import annotations

from typing import Any

import numpy as np

from kmaskformer.checkpoints.errors import CheckpointError, clip
from kmaskformer.checkpoints.mapped_file import check_expansion, native
from kmaskformer.checkpoints.restricted_pickle import StoredArray

# Under these keys training scripts keep the weights, beside optimizer, epoch and the like.
WRAPPERS = ("model", "state_dict", "model_state", "blobs")


def state_dict_arrays(path: Any, content: Any, size: int) -> dict[str, np.ndarray]:
    """Named arrays of a checkpoint's content.

    Args:
        path: The file, for messages.
        content: A dictionary of arrays, or one that holds it under `model`, `state_dict`, `model_state` or `blobs`.
        size: Bytes of the file.

    Returns:
        The arrays under their own names. Numbers, strings and None among them are left out.
    """
    entries = _unwrap(path, content)
    stored = {_text(name): value for name, value in entries.items() if isinstance(value, StoredArray)}
    nested = [_text(name) for name, value in entries.items() if _holds_arrays(value)]
    if nested or not stored:
        raise CheckpointError(
            path,
            f"a dictionary of arrays, bare or under one of {', '.join(WRAPPERS)}",
            f"arrays nested deeper, in {_first(nested)}" if nested else f"no array under {_first(map(_text, entries))}",
            "Save only the dictionary of weights, for instance `torch.save(model.state_dict(), path)`.",
        )
    arrays: dict[str, np.ndarray] = {}
    total = 0
    for name, value in stored.items():
        array = _array(path, name, value)
        total += array.nbytes
        check_expansion(path, total, size)
        if array.dtype.kind not in "SU":
            arrays[name] = native(array)
    return arrays


def _unwrap(path: Any, content: Any) -> dict[Any, Any]:
    if type(content) is not dict:
        raise CheckpointError(
            path, "a dictionary of arrays", f"a {type(content).__name__}", "Save the model's dictionary of weights."
        )
    for key in WRAPPERS:
        if type(content.get(key)) is dict and _holds_arrays(content[key]):
            return content[key]
    return content


def _array(path: Any, name: str, value: StoredArray) -> np.ndarray:
    try:
        return value.to_array()
    except CheckpointError:
        raise
    except ValueError as error:
        raise CheckpointError(
            path, f"an array under {clip(name)}", str(error), "The file is corrupt or hostile: do not use it."
        ) from error


def _holds_arrays(value: Any) -> bool:
    values = value.values() if type(value) is dict else value if type(value) in (list, tuple) else ()
    return any(isinstance(item, StoredArray) for item in values)


def _text(name: Any) -> str:
    return name.decode("latin1") if isinstance(name, bytes) else str(name)


def _first(names: Any, count: int = 8) -> str:
    names = list(names)
    more = f" and {len(names) - count} more" if len(names) > count else ""
    return (", ".join(clip(name) for name in names[:count]) or "no key") + more
