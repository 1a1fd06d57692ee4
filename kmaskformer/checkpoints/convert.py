"""From any checkpoint to a model of this package."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from kmaskformer.checkpoints.huggingface import CONFIG_FILE, load_huggingface_model
from kmaskformer.checkpoints.huggingface_names import HUGGINGFACE_MAP, PIXEL_LEVEL
from kmaskformer.checkpoints.loading import (
    LoadedWeight,
    LoadReport,
    NameMap,
    load_weights_by_name,
    named_weights,
    zero_initializers,
)
from kmaskformer.checkpoints.model_files import load_weights, read_model
from kmaskformer.checkpoints.preset_config import is_preset
from kmaskformer.checkpoints.reader import read_checkpoint
from kmaskformer.checkpoints.reference_config import HEAD_CHANNELS, model_from_reference_arrays
from kmaskformer.checkpoints.reference_names import REFERENCE_MAP
from kmaskformer.models.segmentation_model import SegmentationModel

KERAS_SUFFIXES = (".weights.h5", ".keras")
_LOGGER = logging.getLogger("kmaskformer")


def load_checkpoint(
    source: str | Path, make_model: Callable[[], SegmentationModel] | None = None, num_classes: int | None = None
) -> tuple[SegmentationModel, LoadReport]:
    """A model with the weights of a checkpoint of any kind.

    Args:
        source: A Hugging Face folder; a file, or a folder with one, under the reference's or Hugging Face's parameter
            names (`.pkl`, `.pth`, `.bin`, `.safetensors`, sharded or not); a `.keras` file; or a `.weights.h5` file,
            which needs `make_model`.
        make_model: Makes the model to fill. By default its architecture is that of the folder's `config.json`, of the
            `.keras` file, or what names and shapes tell.
        num_classes: For fine-tuning: another number of classes than the checkpoint's. The class head stays fresh.

    Returns:
        The model, and what went where.

    Raises:
        ValueError: If the source cannot be read, does not tell its architecture, or does not fit the model; if
            `num_classes` is not a positive integer.
    """
    source = Path(source)
    check_num_classes(num_classes)
    if source.name.endswith(KERAS_SUFFIXES) and source.is_file():
        return _load_keras(source, make_model, num_classes)
    if is_preset(source):
        raise ValueError(f"{source}: is a preset of this package, which kmaskformer.from_preset loads")
    if make_model is None and (source / CONFIG_FILE).is_file():
        return load_huggingface_model(source, num_classes)
    arrays = read_checkpoint(source)
    try:
        # Random initial values are needed only where some of them stay.
        with zero_initializers() if num_classes is None else contextlib.nullcontext():
            model = make_model() if make_model else _model_from_names(source, arrays, num_classes)
        return model, load_weights_by_name(model, arrays, find_model_map(arrays), num_classes is not None)
    except ValueError as error:
        raise ValueError(f"{source}: {error}") from error


def find_model_map(names: Mapping[str, Any]) -> NameMap:
    """The name map of a whole model's checkpoint.

    Raises:
        ValueError: If the names are neither the reference's nor Hugging Face's.
    """
    if any(name.startswith(f"{PIXEL_LEVEL}.") for name in names):
        return HUGGINGFACE_MAP
    if any(name.startswith("sem_seg_head.") for name in names):
        return REFERENCE_MAP
    first = ", ".join(sorted(names)[:5]) or "none"
    raise ValueError(
        "Expected parameter names of a MaskFormer: the reference's (sem_seg_head. ...) or Hugging Face's "
        f"({PIXEL_LEVEL}. ...). Received {len(names)} names, first: {first}. For the weights of a backbone alone, use "
        "kmaskformer.checkpoints.backbone_names.load_backbone_weights."
    )


def check_num_classes(num_classes: int | None) -> None:
    """Refuses what is no number of classes.

    Raises:
        ValueError: If it is neither `None` nor a positive integer.
    """
    is_integer = isinstance(num_classes, int | np.integer) and not isinstance(num_classes, bool)
    if num_classes is not None and not (is_integer and num_classes > 0):
        raise ValueError(f"`num_classes` must be a positive integer, or None. Received: num_classes={num_classes!r}")


def _model_from_names(source: Path, arrays: Mapping[str, np.ndarray], num_classes: int | None) -> SegmentationModel:
    if find_model_map(arrays) is HUGGINGFACE_MAP:
        raise ValueError("Hugging Face weights need their config.json beside them: name the folder of both")
    model = model_from_reference_arrays(arrays, num_classes)
    _say_what_was_assumed(source, model)
    return model


def _say_what_was_assumed(source: Path, model: SegmentationModel) -> None:
    configs = (getattr(model, part).get_config() for part in model.PARTS[1:])
    heads = {config["num_heads"] for config in configs if "num_heads" in config}
    if heads:
        _LOGGER.warning(
            "%s: the file does not tell the number of attention heads; taken to be %s, of %d channels each, as in all "
            "published models. If it is another, give a configuration, or build the model from one and call "
            "load_reference_weights.",
            source,
            " and ".join(map(str, sorted(heads))),
            HEAD_CHANNELS,
        )


def _load_keras(source: Path, make_model: Any, num_classes: int | None) -> tuple[SegmentationModel, LoadReport]:
    if num_classes is not None:
        raise ValueError(
            f"{source}: another number of classes is possible with published checkpoints and presets; "
            "convert the file to a folder first, which is a preset"
        )
    if make_model is None and not source.name.endswith(".keras"):
        raise ValueError(
            f"{source}: a .weights.h5 file does not tell its architecture. Convert it with the configuration it was "
            "trained with (`kmaskformer convert ... --config`), or name the run's folder or its .keras file."
        )
    if make_model is None:
        model = read_model(source)
    else:
        with zero_initializers():
            model = make_model()
        load_weights(model, source)
    rows = (LoadedWeight(path, tuple(weight.shape), path) for path, weight in named_weights(model).items())
    return model, LoadReport("this package's own file", tuple(rows))
