"""Writing a folder that `transformers` loads as `MaskFormerForInstanceSegmentation`."""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import keras
import numpy as np

from kmaskformer.backbones.resnet import ResNet
from kmaskformer.checkpoints import huggingface
from kmaskformer.checkpoints.huggingface_config import huggingface_config
from kmaskformer.checkpoints.huggingface_names import PIXEL_LEVEL, huggingface_source
from kmaskformer.checkpoints.loading import named_weights
from kmaskformer.checkpoints.safetensors_writer import LazyArray, write_safetensors
from kmaskformer.layers.window_attention import relative_position_index
from kmaskformer.models.maskformer import MaskFormer
from kmaskformer.whole_files import files_written_whole

WEIGHTS_FILE = "model.safetensors"
NO_OBJECT_WEIGHT = 0.1


def export_to_huggingface(
    model: MaskFormer,
    folder: str | Path,
    shortest_edge: int = huggingface.SHORTEST_EDGE,
    longest_edge: int = huggingface.LONGEST_EDGE,
) -> Path:
    """Write `config.json`, `model.safetensors` and `preprocessor_config.json`.

    `transformers.MaskFormerForInstanceSegmentation.from_pretrained(folder)` then gives the same outputs for the same
    normalised images, and this package reads the folder back.

    Args:
        model: A built `MaskFormer` with a ResNet or Swin backbone and the FPN pixel decoder.
        folder: Where to write; created. Files of these names there are replaced when all is written; a failure leaves
            them as they were.
        shortest_edge: Length of an image's shorter side at test time, in pixels.
        longest_edge: Bound of the longer side.

    Returns:
        The folder.

    Raises:
        ValueError: If transformers has no such architecture, and the message names the part; if a size is not a
            positive integer, or the shorter side's is the larger. Nothing is written then.
        FileExistsError: If `folder` is a file.
    """
    config = huggingface_config(model)
    _check_sizes(shortest_edge, longest_edge)
    folder = Path(folder).expanduser()
    folder.mkdir(parents=True, exist_ok=True)
    with files_written_whole(folder, optional=[huggingface.DATASET_FILE]) as aside:
        write_safetensors(aside / WEIGHTS_FILE, dict(sorted(_arrays(model))))
        _write_json(aside / huggingface.CONFIG_FILE, config)
        _write_json(aside / huggingface.PREPROCESSOR_FILE, _preprocessor(model, shortest_edge, longest_edge))
        if model.dataset_info is not None:
            _write_json(aside / huggingface.DATASET_FILE, model.dataset_info.to_dict())
    return folder


def _check_sizes(shortest_edge: int, longest_edge: int) -> None:
    are_integers = all(type(edge) is int for edge in (shortest_edge, longest_edge))
    if not are_integers or not 0 < shortest_edge <= longest_edge:
        raise ValueError(
            "`shortest_edge` and `longest_edge` must be positive integers, the first not above the second. Received: "
            f"shortest_edge={shortest_edge!r}, longest_edge={longest_edge!r}"
        )


def _preprocessor(model: MaskFormer, shortest_edge: int, longest_edge: int) -> dict[str, Any]:
    preprocessing = model.preprocessing
    return {
        "image_processor_type": "MaskFormerImageProcessor",
        "do_resize": True,
        "size": {"shortest_edge": shortest_edge, "longest_edge": longest_edge},
        "size_divisor": max(preprocessing.size_divisibility, 1),
        "resample": 2,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": [value / 255 for value in preprocessing.mean],
        "image_std": [value / 255 for value in preprocessing.std],
        "do_reduce_labels": False,
        "ignore_index": 255 if model.dataset_info is None else model.dataset_info.ignore_value,
    }


def _arrays(model: MaskFormer) -> Iterator[tuple[str, LazyArray]]:
    for path, variable in named_weights(model).items():
        keys = huggingface_source(path).keys
        *inputs, outputs = variable.shape
        shape = _torch_layout(np.broadcast_to(0.0, (*inputs, outputs // len(keys))), path).shape
        for index, key in enumerate(keys):
            make = functools.partial(_part, variable, path, index, len(keys))
            yield key, LazyArray(shape, "float32", make)
    weight = np.ones(model.num_classes + 1)
    weight[-1] = NO_OBJECT_WEIGHT
    yield "criterion.empty_weight", _constant(weight, "float32")
    yield from _bookkeeping(model)


def _part(variable: Any, path: str, index: int, count: int) -> np.ndarray:
    value = keras.ops.convert_to_numpy(variable)
    return _torch_layout(np.split(value, count, axis=-1)[index], path)


def _torch_layout(value: np.ndarray, path: str) -> np.ndarray:
    if not path.endswith("/kernel"):
        return value
    return value.transpose(3, 2, 0, 1) if value.ndim == 4 else value.T


def _bookkeeping(model: MaskFormer) -> Iterator[tuple[str, LazyArray]]:
    """Arrays that transformers stores beside the weights."""
    backbone = model.backbone
    if isinstance(backbone, ResNet):
        for path in named_weights(backbone):
            if path.endswith(("/mean", "/moving_mean")):
                name = huggingface_source(path).keys[0].replace(".running_mean", ".num_batches_tracked")
                yield name, _constant(np.zeros(()), "int64")
        return
    index = relative_position_index(backbone.window_size)
    for path in named_weights(backbone):
        if path.endswith("/relative_position_bias_table"):
            name = huggingface_source(path).keys[0].replace("_bias_table", "_index")
            yield name, _constant(index, "int64")
    # The norm behind Swin's last stage, which the segmentation model does not use.
    channels = backbone.feature_channels["res5"]
    yield f"{PIXEL_LEVEL}.encoder.model.layernorm.weight", _constant(np.ones(channels), "float32")
    yield f"{PIXEL_LEVEL}.encoder.model.layernorm.bias", _constant(np.zeros(channels), "float32")


def _constant(value: np.ndarray, dtype: str) -> LazyArray:
    return LazyArray(value.shape, dtype, lambda: value)


def _write_json(path: Path, values: dict[str, Any]) -> None:
    path.write_text(json.dumps(values, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
