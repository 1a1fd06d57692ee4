"""Name map between this package's weights and the reference's parameters.

A weight is found by its name and never by its position: each Keras path is rewritten into the key under which the
reference stores it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

# Buffers and bookkeeping of the reference's state that carry nothing learned.
IGNORED = re.compile(r"(relative_position_index|num_batches_tracked|criterion\.empty_weight|pixel_mean|pixel_std)$")

_PARTS = (
    (r"^pixel_decoder/input_projection", "sem_seg_head/pixel_decoder/input_proj"),
    (r"^pixel_decoder/encoder", "sem_seg_head/pixel_decoder/transformer/encoder"),
    (r"^pixel_decoder", "sem_seg_head/pixel_decoder"),
    (r"^transformer_decoder/query_embedding", "sem_seg_head/predictor/query_embed/weight"),
    (r"^transformer_decoder/input_projection", "sem_seg_head/predictor/input_proj"),
    (r"^transformer_decoder", "sem_seg_head/predictor/transformer"),
    (r"^class_head", "sem_seg_head/predictor/class_embed"),
    (r"^mask_head/linear_", "sem_seg_head/predictor/mask_embed/layers/"),
    (r"/(encoder|decoder)/layer_", r"/\1/layers/"),
    (r"/self_attention/", "/self_attn/"),
    (r"/cross_attention/", "/multihead_attn/"),
    (r"/output_projection/", "/out_proj/"),
)
_LEAVES = {
    "kernel": "weight",
    "gamma": "weight",
    "scale": "weight",
    "beta": "bias",
    "offset": "bias",
    "mean": "running_mean",
    "moving_mean": "running_mean",
    "variance": "running_var",
    "moving_variance": "running_var",
}
_PACKED = re.compile(r"/(query|key|value)_projection/(kernel|bias)$")


class ReferenceParameter(NamedTuple):
    """Where the reference keeps a weight: its key, and which third of it where queries, keys and values are packed."""

    key: str
    third: int | None = None


def reference_parameter(path: str) -> ReferenceParameter:
    """Reference parameter of a weight.

    Args:
        path: Keras path within the model, such as `backbone/res2/0/conv1/kernel`.
    """
    for pattern, replacement in _PARTS:
        path = re.sub(pattern, replacement, path)
    packed = _PACKED.search(path)
    if packed:
        leaf = "in_proj_weight" if packed[2] == "kernel" else "in_proj_bias"
        key = f"{path[: packed.start()]}/{leaf}".replace("/", ".")
        return ReferenceParameter(key, ("query", "key", "value").index(packed[1]))
    *parents, leaf = path.split("/")
    return ReferenceParameter(".".join([*parents, _LEAVES.get(leaf, leaf)]))


def load_reference_weights(model: Any, arrays: Mapping[str, np.ndarray]) -> list[str]:
    """Set every weight of a model from arrays under the reference's parameter names.

    Args:
        model: A built model of this package.
        arrays: `{name: array}` in PyTorch's layout (convolutions O I H W, linear kernels O I). Names of the first
            checkpoint version, without `pixel_decoder.`, are understood.

    Returns:
        Names of the arrays that carry nothing learned and were ignored.

    Raises:
        TypeError: If `arrays` is not a mapping.
        ValueError: If a weight has no array, an array no weight, or a shape differs; nothing is set then.
    """
    if not isinstance(arrays, Mapping):
        raise TypeError(
            f"`arrays` must map the reference's parameter names to arrays. Received: {type(arrays).__name__}"
        )
    arrays = {_current_name(name): array for name, array in arrays.items()}
    values, missing, mismatched, used = {}, [], [], set()
    for variable in model.weights:
        if _is_random_state(variable):
            continue
        path = variable.path.partition("/")[2]
        parameter = reference_parameter(path)
        if parameter.key not in arrays:
            missing.append(f"{path} ({parameter.key})")
            continue
        used.add(parameter.key)
        value = _to_keras_layout(np.asarray(arrays[parameter.key]), parameter, path)
        if value.shape != tuple(variable.shape):
            mismatched.append(f"{path} {tuple(variable.shape)} and {parameter.key} {value.shape}")
        values[variable.path] = (variable, value)
    ignored = sorted(name for name in arrays if name not in used and IGNORED.search(name))
    unused = sorted(name for name in arrays if name not in used and not IGNORED.search(name))
    _check(missing, unused, mismatched)
    for variable, value in values.values():
        variable.assign(value)
    return ignored


def _current_name(name: str) -> str:
    # Version 1 kept the pixel decoder's parameters directly in the head.
    if name.startswith("sem_seg_head.") and not name.startswith(("sem_seg_head.predictor", "sem_seg_head.pixel_d")):
        return name.replace("sem_seg_head.", "sem_seg_head.pixel_decoder.", 1)
    return name


def _to_keras_layout(array: np.ndarray, parameter: ReferenceParameter, path: str) -> np.ndarray:
    if parameter.third is not None:
        array = np.array_split(array, 3, axis=0)[parameter.third]
    if not path.endswith("kernel"):
        return array
    return array.transpose(2, 3, 1, 0) if array.ndim == 4 else array.T


def _is_random_state(variable: Any) -> bool:
    return "seed_generator" in variable.path


def _check(missing: list[str], unused: list[str], mismatched: list[str]) -> None:
    problems = [
        f"{len(items)} {text}: {', '.join(items[:5])}"
        for items, text in (
            (missing, "weights have no array"),
            (unused, "arrays have no weight"),
            (mismatched, "shapes differ"),
        )
        if items
    ]
    if problems:
        raise ValueError("The arrays do not fit the model. " + "; ".join(problems))
