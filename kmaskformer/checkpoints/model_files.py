"""This package's own files, `.keras` and `.weights.h5`, read back and checked."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import keras

from kmaskformer.backbones import adapters  # noqa: F401 (a model file may hold an adapted backbone)
from kmaskformer.checkpoints.loading import check_finite, named_weights
from kmaskformer.checkpoints.mapped_archive import MappedArchive
from kmaskformer.checkpoints.mapped_file import map_file
from kmaskformer.models.segmentation_model import SegmentationModel

_CONFIG = "config.json"
_INVISIBLE = (
    "num_heads",
    "pre_norm",
    "in_feature",
    "enforce_input_projection",
    "multi_grid",
    "qk_scale",
    "window_size",
    "input_scaling",
)
"""What changes a model's answers, and the shapes of its weights perhaps not."""
_READING_ERRORS = (ValueError, OSError, KeyError, TypeError, AttributeError, IndexError, ImportError)


def read_model(path: str | Path) -> SegmentationModel:
    """The model of a `.keras` file, not compiled.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is cut off, no model of this package can be made of it, or a weight is NaN or infinite.
    """
    path = Path(path)
    _described(path)  # says what is wrong with a file that is cut off, which Keras does not
    try:
        model = keras.saving.load_model(path, compile=False)
    except _READING_ERRORS as error:
        raise ValueError(f"{path}: not a model that this package can read: {error}") from error
    if not isinstance(model, SegmentationModel):
        raise ValueError(f"{path}: holds a {type(model).__name__}, not a segmentation model of this package.")
    _check_weights(path, model)
    return model


def load_weights(model: SegmentationModel, path: str | Path) -> None:
    """Set a model's weights from a `.weights.h5` or `.keras` file.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file has another format, does not fit the model, or a weight is NaN or infinite.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such weights file")
    if not path.name.endswith((".weights.h5", ".keras")):
        raise ValueError(f"{path}: weights must be a .weights.h5 or .keras file")
    if path.suffix == ".keras":
        _check_architecture(path, _described(path), model)
    try:
        model.load_weights(path)
    except (ValueError, OSError, KeyError) as error:
        raise ValueError(f"{path}: these weights do not fit the configured model: {error}") from error
    _check_weights(path, model)


def _described(path: Path) -> dict[str, Any]:
    """Class and configuration of the model in a `.keras` file, as Keras serialises it."""
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such model file")
    content = MappedArchive(path, map_file(path)).read(_CONFIG).tobytes()
    try:
        described = json.loads(content)
    except ValueError as error:
        raise ValueError(f"{path}: its {_CONFIG} cannot be read as JSON ({error}). Copy it anew.") from error
    return described if isinstance(described, dict) else {}


def _check_architecture(path: Path, described: dict[str, Any], model: SegmentationModel) -> None:
    """Refuses a file whose weights would fit in shape, but belong to a model that computes something else."""
    found = {"class_name": described.get("class_name")} | _invisible(described.get("config") or {}, model)
    wanted = {"class_name": type(model).__name__} | _invisible(model.get_config(), model)
    differing = [name for name, value in wanted.items() if found.get(name, value) != value]
    if differing:
        names = ", ".join(f"{name} {found[name]} (configured: {wanted[name]})" for name in differing)
        raise ValueError(
            f"{path}: these weights do not fit the configured model: the file's model has {names}. Give the "
            "configuration that it was trained with."
        )


def _invisible(config: dict[str, Any], model: SegmentationModel) -> dict[str, Any]:
    parts = {part: (config.get(part) or {}).get("config", {}) for part in model.PARTS}
    return {f"{part}.{name}": values[name] for part, values in parts.items() for name in _INVISIBLE if name in values}


def _check_weights(path: Path, model: SegmentationModel) -> None:
    try:
        for name, weight in named_weights(model).items():
            check_finite(keras.ops.convert_to_numpy(weight), name)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
