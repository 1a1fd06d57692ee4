"""LiteRT (TensorFlow Lite) files: images of one size in, results out, for phones and small boards."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from kmaskformer.export.inference_graph import inference_graph
from kmaskformer.structures import DatasetInfo

QUANTIZATIONS = ("none", "dynamic")


def export_litert(
    model: Any,
    path: str | os.PathLike,
    image_size: tuple[int, int],
    task: str = "semantic",
    quantization: str = "none",
    batch_size: int = 1,
    input_dtype: str = "uint8",
    dataset_info: DatasetInfo | None = None,
    **options: Any,
) -> Path:
    """Writes a model with its post-processing as one LiteRT file, of LiteRT's own operators alone.

    The signature `serving_default` takes `images` `(batch_size, *image_size, 3)`, RGB 0..255, and returns the arrays of
    `inference.postprocess.Postprocess` at the size of the images, by name.

    Args:
        model: A segmentation model in float32.
        path: File to write; its folder is made if it is missing.
        image_size: Height and width of the images. Resizing them is the caller's part.
        task: `"semantic"`, `"instance"` or `"panoptic"`; `"raw"` for the model's logits alone.
        quantization: `"none"`, or `"dynamic"` for weights in int8 and activations that are quantised on the way: a file
            of about a quarter of the size.
        batch_size: Number of images.
        input_dtype: `"uint8"` or `"float32"`, the type of `images`.
        dataset_info: Things of the classes; those of the model by default.
        **options: Further arguments of `Postprocess`.

    Returns:
        The path.

    Raises:
        ValueError: If an argument is none that exists, or the model cannot be exported so.

    Example:
        ```python
        export_litert(model, "model.tflite", image_size=(512, 512), quantization="dynamic")
        segment = ai_edge_litert.interpreter.Interpreter("model.tflite").get_signature_runner()
        class_map = segment(images=images)["class_map"]
        ```
    """
    if quantization not in QUANTIZATIONS:
        raise ValueError(f"`quantization` must be one of {', '.join(QUANTIZATIONS)}. Received: {quantization!r}")
    shape = (batch_size, *image_size)
    if len(shape) != 3 or not all(isinstance(side, int) and side > 0 for side in shape):
        raise ValueError(
            "`batch_size` and the two of `image_size` (height, width) must be positive integers. "
            f"Received: batch_size={batch_size}, image_size={tuple(image_size)}"
        )
    function, _ = inference_graph(
        model, task, shape, input_dtype, with_logits=False, dataset_info=dataset_info, **options
    )
    content = _convert(model, function, quantization)
    path = Path(path).expanduser()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def _convert(model: Any, function: Any, quantization: str) -> bytes:
    import tensorflow as tf

    # The converter keeps the names of inputs and outputs only if it can save function and variables together.
    owner = tf.Module()
    owner.tracked_variables = [variable.value for variable in model.variables]
    converter = tf.lite.TFLiteConverter.from_concrete_functions([function], owner)
    if quantization == "dynamic":
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
    return converter.convert()
