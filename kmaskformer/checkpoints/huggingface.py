"""Reading a folder that `transformers` wrote: configuration, image preparation, weights."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from kmaskformer.checkpoints.huggingface_config import class_names, model_from_huggingface_config
from kmaskformer.checkpoints.huggingface_names import HUGGINGFACE_MAP
from kmaskformer.checkpoints.loading import LoadReport, load_weights_by_name, zero_initializers
from kmaskformer.checkpoints.reader import read_checkpoint
from kmaskformer.json_files import read_json_object
from kmaskformer.models.maskformer import MaskFormer
from kmaskformer.models.preprocessing import IMAGENET_MEAN, IMAGENET_STD
from kmaskformer.structures import DatasetInfo

CONFIG_FILE = "config.json"
PREPROCESSOR_FILE = "preprocessor_config.json"
DATASET_FILE = "dataset_info.json"
"""Ours: what `config.json` has no room for, things and colours of the classes. Written by the export."""

SHORTEST_EDGE, LONGEST_EDGE = 800, 1333
SIZE_DIVISIBILITY = 32


class Preprocessing(NamedTuple):
    """How images are prepared for a model.

    Args:
        shortest_edge: Length of an image's shorter side in pixels.
        longest_edge: Bound of the longer side, which goes before.
        pixel_mean: Mean of each RGB channel, 0..255.
        pixel_std: Standard deviation of each RGB channel, 0..255.
        size_divisibility: Images are padded to a multiple of it; 0 or 1 for none.
    """

    shortest_edge: int = SHORTEST_EDGE
    longest_edge: int = LONGEST_EDGE
    pixel_mean: tuple[float, float, float] = IMAGENET_MEAN
    pixel_std: tuple[float, float, float] = IMAGENET_STD
    size_divisibility: int = SIZE_DIVISIBILITY


def load_huggingface_folder(folder: str | Path, num_classes: int | None = None) -> MaskFormer:
    """The model of a folder with `config.json` and weights; `preprocessor_config.json` is optional.

    Args:
        folder: The folder.
        num_classes: For fine-tuning: another number of classes than the folder's. The class head then stays fresh,
            and a warning says so.

    Returns:
        The model, built, with `dataset_info` from the folder's labels (none with another number of classes).

    Raises:
        FileNotFoundError: If the folder or its `config.json` does not exist.
        ValueError: If the architecture is not supported, the weights do not fit, or `dataset_info.json` is not ours.
    """
    model, report = load_huggingface_model(folder, num_classes)
    if report.fresh:
        warnings.warn(f"{folder}: left fresh, to be trained: {', '.join(report.fresh)}", stacklevel=2)
    return model


def load_huggingface_model(folder: str | Path, num_classes: int | None = None) -> tuple[MaskFormer, LoadReport]:
    """As `load_huggingface_folder`, with the table of what went where, and no warning."""
    folder = Path(folder)
    path = folder / CONFIG_FILE
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file. A Hugging Face folder has config.json beside its weights.")
    config = read_json_object(path)
    preparation = read_preprocessor(folder)
    options: dict[str, Any] = {
        name: getattr(preparation, name) for name in ("pixel_mean", "pixel_std", "size_divisibility")
    }
    same_classes = num_classes in (None, _count_classes(folder, config))
    if same_classes and (folder / DATASET_FILE).is_file():
        options["dataset_info"] = _read_dataset_info(folder / DATASET_FILE)
    arrays = read_checkpoint(folder)
    try:
        if same_classes:
            with zero_initializers():  # every weight is set below
                model = model_from_huggingface_config(config, **options)
        else:
            model = model_from_huggingface_config(config, num_classes, **options)
        return model, load_weights_by_name(model, arrays, HUGGINGFACE_MAP, allow_other_classes=not same_classes)
    except ValueError as error:
        raise ValueError(f"{folder}: {error}") from error


def read_preprocessor(folder: str | Path) -> Preprocessing:
    """Image sizes, normalisation and padding of a folder.

    ImageNet's normalisation, 800, 1333 and a multiple of 32 where it has no `preprocessor_config.json`.

    A fixed size, height and width, which would stretch images, is read as its shorter and longer side.

    Raises:
        ValueError: If the file is not JSON, or has other than three means and standard deviations.
    """
    path = Path(folder) / PREPROCESSOR_FILE
    if not path.is_file():
        return Preprocessing()
    values = read_json_object(path)
    mean, std = _normalization(values)
    if len(mean) != 3 or len(std) != 3:
        raise ValueError(f"{path}: image_mean and image_std must have 3 entries. Received: {mean}, {std}")
    return Preprocessing(*_sizes(values), tuple(mean), tuple(std), _size_divisibility(values))


def _read_dataset_info(path: Path) -> DatasetInfo:
    values = read_json_object(path)
    try:
        return DatasetInfo.from_dict(values)
    except (TypeError, ValueError, KeyError) as error:
        raise ValueError(
            f"{path}: not a label space that this package has written ({error}). Correct the file, or delete it to "
            f"take the names of {CONFIG_FILE}."
        ) from error


def _normalization(values: Mapping[str, Any]) -> tuple[list[float], list[float]]:
    factor = values.get("rescale_factor", 1 / 255) if values.get("do_rescale", True) else 1.0
    if not values.get("do_normalize", True):
        return [0.0] * 3, [1 / factor] * 3
    mean = values.get("image_mean") or [value * factor for value in IMAGENET_MEAN]
    std = values.get("image_std") or [value * factor for value in IMAGENET_STD]
    return [value / factor for value in mean], [value / factor for value in std]


def _sizes(values: Mapping[str, Any]) -> tuple[int, int]:
    size = values.get("size", SHORTEST_EDGE)
    if not isinstance(size, Mapping):
        size = {"shortest_edge": size}
    sides = [size[key] for key in ("height", "width") if key in size]
    if sides:
        return min(sides), max(sides)
    longest = size.get("longest_edge") or values.get("max_size") or LONGEST_EDGE
    return size.get("shortest_edge", SHORTEST_EDGE), longest


def _size_divisibility(values: Mapping[str, Any]) -> int:
    """The multiple under the name it has now, or that of older versions of transformers."""
    found = (values.get(name) for name in ("size_divisor", "size_divisibility"))
    return next((value for value in found if value is not None), SIZE_DIVISIBILITY)


def _count_classes(folder: Path, config: Mapping[str, Any]) -> int:
    try:
        return len(class_names(config))
    except ValueError as error:
        raise ValueError(f"{folder}: {error}") from error
