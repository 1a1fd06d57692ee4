"""TensorFlow SavedModels that run without this package: in TensorFlow Serving, in C++, or by `tf.saved_model.load`."""

from __future__ import annotations

import copy
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import tensorflow as tf

from kmaskformer.export.metadata import METADATA_FILE, describe, write_metadata
from kmaskformer.export.precision import with_dtype
from kmaskformer.export.signature import SegmentationSignature
from kmaskformer.segmenter import Segmenter


def export_saved_model(
    model: Any,
    folder: str | os.PathLike,
    task: str = "panoptic",
    outputs: Sequence[str] | None = None,
    dtype: str | None = None,
    config: Any = None,
    license: str | None = None,
    **options: Any,
) -> Path:
    """Writes a model with everything around it, from the image or its file to the result at the image's own size.

    The answers are those of the `Segmenter` with the same options, which may not be a `tiling` or an `augmentation`: a
    SavedModel sees the images it is given whole. Three signatures:

    - `serving_default`: `images` `(batch, height, width, 3)` uint8 RGB of any size; see
      `SegmentationSignature.from_images` for what each task returns.
    - `serve_encoded`: `image_bytes` `(batch,)`, JPEG or PNG files, also of different sizes; returns in addition
      `image_sizes`.
    - `raw`: `images`; returns `class_logits` and `mask_logits` (of a per-pixel model `logits`).

    `assets/metadata.json` in the folder tells names, colours and things of the classes, the thresholds, the licence
    and the configuration.

    Args:
        model: A model of this package.
        folder: Folder to write; an earlier export in it is replaced.
        task: `"semantic"`, `"instance"` or `"panoptic"`.
        outputs: Names of the outputs to return, for instance `("panoptic_map",)`; all of the task's if None.
        dtype: Precision of the export; see `with_dtype`. None: the model's own.
        config: The resolved configuration, for the metadata; that of the model alone if None.
        license: Licence of the weights, for the metadata.
        **options: Options of `Segmenter`: `inference`, `shortest_edge`, `longest_edge`, the thresholds,
            `before_inference` and `dataset_info`.

    Returns:
        The folder.

    Raises:
        FileExistsError: If the folder holds files that are no SavedModel.
        ValueError: If an option is none that exists.

    Example:
        ```python
        kmf.export_saved_model(model, "out/saved_model", task="panoptic", shortest_edge=800, longest_edge=1333)
        segment = tf.saved_model.load("out/saved_model").signatures["serving_default"]
        panoptic_map = segment(images=images)["panoptic_map"]
        ```
    """
    segmenter = Segmenter(model, task=task, **options)
    return export_segmenter(segmenter, folder, outputs=outputs, dtype=dtype, config=config, license=license)


def export_segmenter(
    segmenter: Segmenter,
    folder: str | os.PathLike,
    outputs: Sequence[str] | None = None,
    dtype: str | None = None,
    config: Any = None,
    license: str | None = None,
) -> Path:
    """Writes a `Segmenter` as a SavedModel; for the arguments see `export_saved_model`."""
    if segmenter.tiling is not None or segmenter.augmentation is not None:
        raise ValueError(
            "A SavedModel sees each image whole and once. Received: a segmenter with "
            f"{'a tiling' if segmenter.tiling is not None else 'an augmentation'}. Export without it, and cut images "
            "up or turn them where the SavedModel is called."
        )
    folder = Path(folder).expanduser()
    _check_folder(folder)
    if dtype is not None:
        segmenter = copy.copy(segmenter)
        segmenter.model = with_dtype(segmenter.model, dtype)
    functions = SegmentationSignature(segmenter, outputs).functions()
    record = describe(
        segmenter, config, license, dtype=_dtype_name(segmenter.model), signatures=_describe_signatures(functions)
    )
    with tempfile.TemporaryDirectory() as temporary:
        metadata = Path(temporary) / METADATA_FILE
        write_metadata(metadata, record)
        module = tf.Module()
        # Not the model itself: of Keras' objects the file needs the numbers only.
        module.weights = [variable.value for variable in segmenter.model.variables]
        module.metadata = tf.saved_model.Asset(str(metadata))
        module.serve = functions["serving_default"]  # the endpoint that `keras.layers.TFSMLayer` looks for
        tf.saved_model.save(module, str(folder), signatures=functions)
    return folder


def _check_folder(folder: Path) -> None:
    for path in (folder, *folder.parents):
        if path.is_file():
            raise FileExistsError(f"{path}: is a file. A SavedModel is a folder: choose another path.")
    if folder.is_dir() and any(folder.iterdir()) and not (folder / "saved_model.pb").is_file():
        raise FileExistsError(f"{folder}: holds files that are no SavedModel. Choose another folder, or empty it.")


def _dtype_name(model: Any) -> str:
    return model.dtype_policy.name


def _describe_signatures(functions: dict[str, Any]) -> dict[str, Any]:
    """Shapes (-1 where any) and dtypes of inputs and outputs, for readers of the metadata."""
    return {
        name: {
            "inputs": {spec.name: _describe_tensor(spec) for spec in function.structured_input_signature[0]},
            "outputs": {key: _describe_tensor(spec) for key, spec in function.structured_outputs.items()},
        }
        for name, function in functions.items()
    }


def _describe_tensor(spec: Any) -> dict[str, Any]:
    return {"dtype": spec.dtype.name, "shape": [-1 if side is None else side for side in spec.shape]}
