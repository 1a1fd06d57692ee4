"""Name map between this package's weights and the reference's parameters.

A weight is found by its name and never by its position: each Keras path is rewritten into the key under which the
reference stores it.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from kmaskformer.checkpoints.loading import LoadReport, NameMap, Source, load_weights_by_name
from kmaskformer.checkpoints.reader import read_checkpoint

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
    (r"^classifier", "sem_seg_head/predictor"),
    (r"^mask_head/linear_", "sem_seg_head/predictor/mask_embed/layers/"),
    (r"/(encoder|decoder)/layer_", r"/\1/layers/"),
    (r"/(layers|blocks)_(?=\d)", r"/\1/"),
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


def load_reference_weights(
    model: Any, arrays_or_path: Mapping[str, np.ndarray] | str | Path, allow_other_classes: bool = False
) -> LoadReport:
    """Set every weight of a model from arrays under the reference's parameter names.

    Args:
        model: A built model of this package.
        arrays_or_path: `{name: array}` in PyTorch's layout (convolutions O I H W, linear kernels O I), or a file that
            holds them, such as a `model_final_*.pkl`. Names of the first checkpoint version, without
            `pixel_decoder.`, are understood.
        allow_other_classes: Whether the class head stays fresh where the arrays are for another number of classes.

    Returns:
        What went where: the weights that were set, the arrays that carry nothing learned and were ignored, and the
        weights left fresh.

    Raises:
        TypeError: If `arrays_or_path` is neither a mapping nor a path.
        ValueError: If a weight has no array, an array no weight, or a shape differs; nothing is set then.
    """
    arrays = read_arrays(arrays_or_path, "arrays_or_path")
    return load_weights_by_name(model, arrays, REFERENCE_MAP, allow_other_classes)


def read_arrays(arrays_or_path: Any, argument: str) -> Mapping[str, np.ndarray]:
    """The mapping itself, or the arrays of the file at a path."""
    if isinstance(arrays_or_path, Mapping):
        return arrays_or_path
    if isinstance(arrays_or_path, str | os.PathLike):
        return read_checkpoint(arrays_or_path)
    raise TypeError(
        f"`{argument}` must map parameter names to arrays, or be the path of a checkpoint. "
        f"Received: {type(arrays_or_path).__name__}"
    )


def _source(path: str) -> Source:
    key, third = reference_parameter(path)
    return Source((key,), third)


def _current_name(name: str) -> str:
    # Version 1 kept the pixel decoder's parameters directly in the head.
    if name.startswith("sem_seg_head.") and not name.startswith(("sem_seg_head.predictor", "sem_seg_head.pixel_d")):
        return name.replace("sem_seg_head.", "sem_seg_head.pixel_decoder.", 1)
    return name


REFERENCE_MAP = NameMap("reference MaskFormer", _source, _current_name, IGNORED)
