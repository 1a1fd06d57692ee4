"""The way from images to a task's result as one TensorFlow graph without variables of its own, for converters."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

from kmaskformer.inference.postprocess import Postprocess
from kmaskformer.structures import DatasetInfo

RAW_TASK = "raw"
INPUT_DTYPES = ("uint8", "float32")


def inference_graph(
    model: Any,
    task: str = "semantic",
    input_shape: tuple[int | None, int | None, int | None] = (None, None, None),
    input_dtype: str = "uint8",
    with_logits: bool = True,
    dataset_info: DatasetInfo | None = None,
    **options: Any,
) -> tuple[Any, list[str]]:
    """Traces a model with its post-processing, which ends in maps at the size of the images.

    Args:
        model: A segmentation model in float32.
        task: `"semantic"`, `"instance"` or `"panoptic"`; `"raw"` for the model's logits alone.
        input_shape: Batch, height and width of the images; None where they may vary.
        input_dtype: `"uint8"` or `"float32"`.
        with_logits: Whether the model's logits are outputs besides the result.
        dataset_info: Label space, of which the thing classes matter here; the model's by default.
        **options: Further arguments of `inference.postprocess.Postprocess`.

    Returns:
        A concrete function of `images`, RGB 0..255, that returns a dict, and the names of that dict in their order.
        The earlier decoder layers of deep supervision are left out.

    Raises:
        ValueError: If the backend is not TensorFlow, the model computes in half precision, an option is none that
            exists, or the task does not fit the model or its classes.
    """
    _check(model, input_dtype)
    postprocess = None if task == RAW_TASK else _postprocess(model, task, dataset_info, options)
    import tensorflow as tf

    names: list[str] = []

    def run(images: Any) -> dict[str, Any]:
        outputs = model(images, training=False)
        outputs.pop("aux_outputs", None)
        result = {} if postprocess is None else _result(model, postprocess, outputs, ops.shape(images)[1:3])
        result.update(outputs if with_logits or postprocess is None else {})
        names[:] = result
        return result

    signature = (tf.TensorSpec((*input_shape, 3), input_dtype, name="images"),)
    return tf.function(run, input_signature=signature, autograph=False).get_concrete_function(), names


def _result(model: Any, postprocess: Postprocess, outputs: dict[str, Any], size: Any) -> dict[str, Any]:
    return postprocess(outputs, model.padded_size(*size), size, size)


def _postprocess(model: Any, task: str, info: DatasetInfo | None, options: dict[str, Any]) -> Postprocess:
    thing_ids = DatasetInfo.of_model(model, info).thing_ids
    if task == "instance" and not thing_ids:
        raise ValueError(
            '`task="instance"` needs thing classes, and the model\'s label space has none. '
            "Pass a `dataset_info` whose `thing_ids` name the countable classes."
        )
    return Postprocess(task, thing_ids=thing_ids, **options)


def _check(model: Any, input_dtype: str) -> None:
    if keras.backend.backend() != "tensorflow":
        raise ValueError(
            "A model is exported from the TensorFlow backend. "
            f"Received: keras.backend.backend() == {keras.backend.backend()!r}. Set KERAS_BACKEND=tensorflow."
        )
    if input_dtype not in INPUT_DTYPES:
        raise ValueError(f"`input_dtype` must be one of {', '.join(INPUT_DTYPES)}. Received: {input_dtype!r}")
    if model.compute_dtype != "float32":
        raise ValueError(
            f"The model must compute in float32. Received: {model.compute_dtype}. Build it with "
            "`model.precision=float32` and load the same weights: they are float32 under mixed precision, too."
        )
