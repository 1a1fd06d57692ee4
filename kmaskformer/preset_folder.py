"""A trained model as a folder: what `save_to_preset` writes and `from_preset` reads.

| file | holds |
|---|---|
| `config.json` | class and constructor arguments of the model, as Keras serialises them |
| `model.weights.h5` | its weights |
| `dataset_info.json` | names, colours and things of its classes |
| `preprocessing.json` | mean, standard deviation and padding, and the size of the images it was evaluated on |
| `metadata.json` | versions, source, licence, and the digest of the weights |
| `README.md` | a model card |
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any, get_type_hints

import keras

from kmaskformer.checkpoints.loading import zero_initializers
from kmaskformer.checkpoints.model_files import load_weights
from kmaskformer.checkpoints.preset_config import CONFIG, is_preset
from kmaskformer.downloads import DigestError, file_digests
from kmaskformer.json_files import read_json_object, read_json_object_or_empty
from kmaskformer.model_card import model_card
from kmaskformer.models.segmentation_model import SegmentationModel
from kmaskformer.structures import DatasetInfo
from kmaskformer.version import __version__
from kmaskformer.weights_file import save_weights
from kmaskformer.whole_files import files_written_whole

WEIGHTS, METADATA, CARD = "model.weights.h5", "metadata.json", "README.md"
LABELS, PREPROCESSING = "dataset_info.json", "preprocessing.json"
_INPUT_FIELDS = ("pixel_mean", "pixel_std", "size_divisibility")
_SIZE_FIELDS = ("shortest_edge", "longest_edge")


@dataclasses.dataclass(frozen=True)
class PresetInfo:
    """What is known of a preset beside its model; `from_preset` leaves it at `model.preset_info`.

    Args:
        source: Where the weights came from.
        license: Of the weights, as the Hub writes licences (`cc-by-nc-4.0`); "" where unknown.
        score: The published score, in words.
        shortest_edge: Length of the shorter side of the images that it was evaluated on.
        longest_edge: Bound of their longer side.
        object_mask_threshold: Least score of a pair in panoptic inference.
        before_inference: Whether semantic inference restores mask logits, not class scores, to the image's size.
    """

    source: str = ""
    license: str = ""
    score: str = ""
    shortest_edge: int | None = None
    longest_edge: int | None = None
    object_mask_threshold: float | int | None = None
    before_inference: bool | None = None

    @property
    def segmenter_options(self) -> dict[str, Any]:
        """Arguments with which `Segmenter` works as the model was evaluated."""
        names = ("shortest_edge", "longest_edge", "object_mask_threshold", "before_inference")
        return {name: getattr(self, name) for name in names if getattr(self, name) is not None}


def write_preset(model: SegmentationModel, folder: Path, info: PresetInfo, overwrite: bool = False) -> None:
    """Writes a model as a folder.

    Everything is written aside first; a failure leaves the folder as it was.

    Args:
        model: A built model of this package.
        folder: Where to; made if it is missing. In an older preset there the files are replaced, except its model
            card, which someone may have edited.
        info: What is known beside the model.
        overwrite: Write into a folder with other files too, which stay, and replace a model card.

    Raises:
        TypeError: If `model` is no built model of this package.
        FileExistsError: If the folder holds something else, or is a file.
    """
    if not isinstance(model, SegmentationModel) or not model.built:
        raise TypeError(f"`model` must be a built segmentation model of kmaskformer. Received: {model!r}")
    _check_target(folder, overwrite)
    folder.mkdir(parents=True, exist_ok=True)
    # The labels of an older preset may be of other classes.
    with files_written_whole(folder, optional=[LABELS]) as aside:
        _write_files(model, aside, folder.absolute().name, info)
        if (folder / CARD).exists() and not overwrite:
            (aside / CARD).unlink()


def read_preset(folder: Path) -> tuple[SegmentationModel, PresetInfo]:
    """The model of a folder, with its weights.

    Raises:
        FileNotFoundError: If a file is missing.
        DigestError: If the weights are not those that were saved.
        ValueError: If a file cannot be understood, or the weights do not fit the configuration.
    """
    for name in (CONFIG, WEIGHTS):
        if not (folder / name).is_file():
            raise FileNotFoundError(f"{folder / name}: the preset lacks this file. Copy or save it anew.")
    preprocessing, metadata = (read_json_object_or_empty(folder / name) for name in (PREPROCESSING, METADATA))
    _check_digest(folder / WEIGHTS, metadata.get("weights_sha256", ""))
    with zero_initializers():  # every weight is read from the file
        model = _read_model(folder, preprocessing)
    load_weights(model, folder / WEIGHTS)
    return model, _read_info(folder, {**metadata, **preprocessing})


def _read_info(folder: Path, values: dict[str, Any]) -> PresetInfo:
    hints = {name: hint for name, hint in get_type_hints(PresetInfo).items() if values.get(name) is not None}
    for name, hint in hints.items():
        if not isinstance(values[name], hint):
            file = folder / (PREPROCESSING if name in _SIZE_FIELDS else METADATA)
            raise ValueError(f"{file}: `{name}` must be of type {hint}. Found: {values[name]!r}. Copy or save it anew.")
    return PresetInfo(**{name: values[name] for name in hints})


def _check_target(folder: Path, overwrite: bool) -> None:
    if folder.exists() and not folder.is_dir():
        raise FileExistsError(f"{folder}: must be a folder, and is a file. Choose another name.")
    if overwrite or not folder.exists() or is_preset(folder):
        return
    others = sorted(path.name for path in folder.iterdir())
    if others:
        raise FileExistsError(
            f"{folder}: the folder is not empty and not a preset. Found: {', '.join(others[:5])}. Choose another "
            "folder; save_to_preset(..., overwrite=True) writes beside these files."
        )


def _write_files(model: SegmentationModel, folder: Path, name: str, info: PresetInfo) -> None:
    serialized = keras.saving.serialize_keras_object(model)
    config = serialized["config"]
    labels = DatasetInfo.from_dict(config.pop("dataset_info")) if config["dataset_info"] else None
    preprocessing = {field: config.pop(field) for field in _INPUT_FIELDS}
    preprocessing |= {field: getattr(info, field) for field in _SIZE_FIELDS}
    save_weights(model, folder / WEIGHTS)
    metadata = {field: value for field, value in dataclasses.asdict(info).items() if field not in _SIZE_FIELDS}
    metadata |= {"kmaskformer": __version__, "keras": keras.__version__}
    metadata["weights_sha256"] = file_digests(folder / WEIGHTS, "sha256")[0]
    kept = ("module", "class_name", "config", "registered_name")
    _write_json(folder / CONFIG, {key: serialized[key] for key in kept})
    if labels is not None:
        _write_json(folder / LABELS, labels.to_dict())
    _write_json(folder / PREPROCESSING, preprocessing)
    _write_json(folder / METADATA, metadata)
    (folder / CARD).write_text(model_card(model, name, dataclasses.asdict(info)), encoding="utf-8")


def _read_model(folder: Path, preprocessing: dict[str, Any]) -> SegmentationModel:
    serialized = read_json_object(folder / CONFIG)
    labels = read_json_object(folder / LABELS) if (folder / LABELS).is_file() else None
    try:
        serialized["config"] |= {name: preprocessing[name] for name in _INPUT_FIELDS if name in preprocessing}
        model = keras.saving.deserialize_keras_object(serialized)
        if not isinstance(model, SegmentationModel):
            raise TypeError(f"it describes a {type(model).__name__}, not a segmentation model")
    except (TypeError, ValueError, KeyError, AttributeError, IndexError, ImportError) as error:
        raise ValueError(
            f"{folder / CONFIG}: no model can be made of it ({error}). Was it saved by another version of "
            f"kmaskformer? This is {__version__}; {METADATA} names the other."
        ) from error
    try:
        model.dataset_info = labels
    except (TypeError, ValueError, KeyError, AttributeError, IndexError) as error:
        raise ValueError(
            f"{folder / LABELS}: {error}. Correct the file, or delete it to number the classes."
        ) from error
    model.build((None, None, None, 3))
    return model


def _check_digest(path: Path, expected: Any) -> None:
    found = file_digests(path, "sha256")[0] if expected else expected
    if found != expected:
        raise DigestError(
            f"{path}: not the weights that were saved with this preset (cut off, or copied from elsewhere). Expected "
            f"SHA-256 (of {METADATA}): {expected}. Found: {found} ({path.stat().st_size} bytes). Copy it anew."
        )


def _write_json(path: Path, values: Any) -> None:
    path.write_text(json.dumps(values, indent=1) + "\n", encoding="utf-8")
