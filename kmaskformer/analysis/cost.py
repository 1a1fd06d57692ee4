"""Multiply-adds and activations of a model at a given image size, counted in the graph that TensorFlow would run."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf

from kmaskformer.analysis.parts import sums_by_path, variable_path
from kmaskformer.inference.semantic import semantic_scores

INFERENCE = "semantic_inference"
"""Path of the sum over the queries that gives each pixel its class scores."""
MASKS = "masks"
"""Path of the products of mask embeddings and pixel embeddings, which belong to no layer."""


@dataclasses.dataclass(frozen=True)
class Cost:
    """Cost of one forward pass, by path within the model, `""` being the sum of all.

    `"masks"` and `"semantic_inference"` are no layers: see `MASKS` and `INFERENCE`.

    Args:
        multiply_adds: Multiplications of convolutions, matrix products and einsums, each with its addition. Norms,
            activations and resizing are left out: they are below 2 % of the published models.
        activations: Numbers that these operations put out, the measure of detectron2's `analyze_model.py`.
    """

    multiply_adds: dict[str, int]
    activations: dict[str, int]


def count_cost(model: keras.Model, image_size: tuple[int, int], batch: int = 1, inference: bool = True) -> Cost:
    """Count the operations of a model, none of which is run.

    Args:
        model: A built model of this package.
        image_size: `(height, width)` of the images.
        batch: Number of images.
        inference: Whether the semantic inference at the padded size is counted besides the model itself. Resizing to
            the image's own size never is.

    Returns:
        The cost. With `model.deep_supervision` the masks of all decoder layers are part of it, as in training.

    Raises:
        ValueError: If an operation's size is not fixed by the image's, so that it cannot be counted.
    """
    graph = _trace(model, image_size, batch, inference)
    known = _layer_paths(model)
    counted = [(_path(operation.name, known), operation) for operation in _operations(graph)]
    return Cost(
        sums_by_path((path, _COUNTERS[operation.type](operation)) for path, operation in counted),
        sums_by_path((path, _elements(operation.outputs[0])) for path, operation in counted),
    )


def _trace(model: keras.Model, image_size: tuple[int, int], batch: int, inference: bool) -> tf.Graph:
    def run(images: Any) -> Any:
        outputs = model(images, training=False)
        if not inference or "class_logits" not in outputs:
            return outputs
        with tf.name_scope(INFERENCE):
            queries = outputs["class_logits"].shape[1]
            full_size = tf.zeros((batch, queries, *model.padded_size(*image_size)))
            return outputs, semantic_scores(outputs["class_logits"], full_size)

    return tf.function(run).get_concrete_function(tf.TensorSpec((batch, *image_size, 3), tf.uint8)).graph


def _operations(graph: tf.Graph) -> list[tf.Operation]:
    """The operations to count, those inside the functions that the graph calls included."""
    functions = [function.graph for function in graph._functions.values()]
    return [
        operation for part in [graph, *functions] for operation in part.get_operations() if operation.type in _COUNTERS
    ]


def _layer_paths(model: keras.Model) -> set[str]:
    """Paths of all layers with weights, and the whole model's."""
    paths = {""}
    for variable in model.weights:
        names = variable_path(model, variable).split("/")[:-1]
        paths |= {"/".join(names[:depth]) for depth in range(1, len(names) + 1)}
    return paths


def _path(name: str, known: set[str]) -> str:
    """The layer that an operation belongs to.

    An operation's name holds the layers that it was called through, each with a number behind it where a name was used
    before: `maskformer_1/mask_head_3/linear_0_1/Tensordot/MatMul` is of `mask_head/linear_0`.
    """
    scope, *names = name.split("/")
    if scope == INFERENCE:
        return INFERENCE
    path = ""
    for part in names:
        choices = [f"{path}/{choice}".lstrip("/") for choice in (part, _without_number(part))]
        following = next((choice for choice in choices if choice in known), None)
        if following is None:
            break
        path = following
    return path or MASKS


def _without_number(name: str) -> str:
    return re.sub(r"_\d+$", "", name)


def _elements(tensor: tf.Tensor) -> int:
    shape = tensor.shape
    if not shape.is_fully_defined():
        raise ValueError(f"The operation {tensor.op.name} has no fixed size ({shape}) and cannot be counted")
    return shape.num_elements()


def _convolution(operation: tf.Operation) -> int:
    # A kernel has only the input channels of its group.
    height, width, channels, _ = operation.inputs[1].shape
    return _elements(operation.outputs[0]) * height * width * channels


def _depthwise(operation: tf.Operation) -> int:
    height, width, *_ = operation.inputs[1].shape
    return _elements(operation.outputs[0]) * height * width


def _matrix_product(transposed: str) -> Callable[[tf.Operation], int]:
    def count(operation: tf.Operation) -> int:
        inner = operation.inputs[0].shape[-2 if operation.get_attr(transposed) else -1]
        return _elements(operation.outputs[0]) * inner

    return count


def _einsum(operation: tf.Operation) -> int:
    labels = operation.get_attr("equation").decode().split("->")[0].split(",")
    sizes = {
        label: size
        for names, operand in zip(labels, operation.inputs, strict=True)
        for label, size in zip(names, operand.shape, strict=True)
    }
    return math.prod(sizes.values())


_COUNTERS: dict[str, Callable[[tf.Operation], int]] = {
    "Conv2D": _convolution,
    "DepthwiseConv2dNative": _depthwise,
    "MatMul": _matrix_product("transpose_a"),
    "BatchMatMul": _matrix_product("adj_x"),
    "BatchMatMulV2": _matrix_product("adj_x"),
    "Einsum": _einsum,
}
