"""ONNX files: images in, results out, for any batch size, height and width."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np

from kmaskformer.export.inference_graph import inference_graph
from kmaskformer.extras import missing_extra
from kmaskformer.structures import DatasetInfo
from kmaskformer.version import __version__

DEFAULT_OPSET = 18
OPSETS = range(16, 19)
"""From the first that can count into bins (`ScatterElements` with a reduction) to the last that tf2onnx writes."""

LEFT_OUT_OPTIMIZERS = ("remove_back_to_back",)
"""Of two reshapes in a row it removes the first, though the second may say "keep this axis" about its result
(tf2onnx 1.17). ONNX runtimes merge such nodes themselves."""

AXES = {
    "images": ("batch", "height", "width"),
    "class_map": ("batch", "height", "width"),
    "confidence": ("batch", "height", "width"),
    "panoptic_map": ("batch", "height", "width"),
    "masks": ("batch", "queries", "height", "width"),
    "mask_logits": ("batch", "queries", "mask_height", "mask_width"),
    "logits": ("batch", "mask_height", "mask_width"),
}
"""Names of the axes that may vary, for tensors that are no tables of queries."""

TABLE_AXES = ("batch", "queries")


def export_onnx(
    model: Any,
    path: str | os.PathLike,
    task: str = "semantic",
    opset: int = DEFAULT_OPSET,
    input_dtype: str = "uint8",
    dataset_info: DatasetInfo | None = None,
    **options: Any,
) -> Path:
    """Writes a model with its post-processing as one ONNX file. Needs the extra `onnx`.

    The input is `images` `(batch, height, width, 3)`, RGB 0..255, of any size; normalisation and padding are inside.
    Outputs are the arrays of `inference.postprocess.Postprocess` at the size of the images, and the model's own
    (`class_logits` and `mask_logits`). Address them by name: their order is no part of the contract, and a runtime
    computes only those that are asked for. The metadata of the file hold `task`, `options`, `dataset_info` (as JSON)
    and `kmaskformer_version`.

    Args:
        model: A segmentation model in float32.
        path: File to write; its folder is made if it is missing.
        task: `"semantic"`, `"instance"` or `"panoptic"`; `"raw"` for the model's logits alone.
        opset: Version of ONNX's operators, 16 to 18.
        input_dtype: `"uint8"` or `"float32"`, the type of `images`.
        dataset_info: Names, colours and things of the classes; those of the model by default.
        **options: Further arguments of `Postprocess`: `inference`, `object_mask_threshold`, `overlap_threshold`,
            `score_threshold`, `before_inference`.

    Returns:
        The path.

    Raises:
        ImportError: If tf2onnx is not installed.
        ValueError: If an argument is none that exists, or the model cannot be exported so.

    Example:
        ```python
        kmaskformer.export_onnx(model, "model.onnx", task="panoptic")
        session = onnxruntime.InferenceSession("model.onnx")
        panoptic_map, scores = session.run(["panoptic_map", "scores"], {"images": images})
        ```
    """
    _check_opset(opset)
    function, names = inference_graph(model, task, input_dtype=input_dtype, dataset_info=dataset_info, **options)
    proto = _convert(function, names, opset)
    _name_axes(proto)
    info = DatasetInfo.of_model(model, dataset_info)
    _add_metadata(proto, task=task, options=json.dumps(options), dataset_info=json.dumps(info.to_dict()))
    _check_proto(proto)
    path = Path(path).expanduser()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(proto.SerializeToString())
    return path


def _convert(function: Any, names: list[str], opset: int) -> Any:
    """The ONNX model of a concrete function, with the function's own names of inputs and outputs."""
    import tensorflow as tf
    from tf2onnx import optimizer, tf_loader, tfonnx

    # `tf2onnx.convert.from_function` does the same, but lets nobody choose the optimizers.
    renamed = {function.inputs[0].name: "images"}
    renamed |= {function.structured_outputs[name].name: name for name in names}
    inputs, outputs = [function.inputs[0].name], [function.structured_outputs[name].name for name in names]
    with tf.device("/cpu:0"):
        frozen = tf_loader.from_function(function, inputs, outputs)
    with tf.Graph().as_default() as graph:
        tf.import_graph_def(frozen, name="")
        converted = tfonnx.process_tf_graph(
            graph,
            opset=opset,
            input_names=inputs,
            output_names=outputs,
            tensors_to_rename=renamed,
            custom_op_handlers={name: (handler, []) for name, handler in OP_HANDLERS.items()},
        )
        # The dict of all optimizers has no public name.
        chosen = {k: v for k, v in optimizer._get_optimizers().items() if k not in LEFT_OUT_OPTIMIZERS}
        converted = optimizer.optimize_graph(converted, catch_errors=False, optimizers=chosen)
        return converted.make_model("kmaskformer")


def _floor_mod(context: Any, node: Any, name: str, _: Any) -> None:
    """Remainder of integers with the divisor's sign, as `-side % 7` asks for; tf2onnx rounds towards 0."""
    node.type = "Mod"


def _exact_sigmoid(context: Any, node: Any, name: str, _: Any) -> None:
    """`1 / (1 + exp(-x))`. onnxruntime's own sigmoid is 0 below -18, so that nothing would win a pixel of no mask."""
    outputs, shapes, dtypes = node.output, node.output_shapes, node.output_dtypes
    context.remove_node(node.name)
    one = context.make_const(f"{name}_one", np.array(1.0, "float32")).output[0]
    exponential = context.make_node("Exp", context.make_node("Neg", node.input).output).output[0]
    total = context.make_node("Add", [exponential, one]).output
    context.make_node("Reciprocal", total, name=name, outputs=outputs, shapes=shapes, dtypes=dtypes)


def _scatter_sum(context: Any, node: Any, name: str, _: Any) -> None:
    """A sum of `(count,)` numbers by segment as a scatter; tf2onnx would sort the numbers first."""
    import onnx

    data, segments, num_segments = node.input
    shapes, dtypes = node.output_shapes, node.output_dtypes
    context.remove_node(node.name)
    shape_of_one = context.make_const(f"{name}_one", np.array([1], "int64")).output[0]
    length = context.make_node("Cast", [num_segments], attr={"to": onnx.TensorProto.INT64}).output[0]
    length = context.make_node("Reshape", [length, shape_of_one]).output[0]
    zero = onnx.helper.make_tensor("value", context.get_dtype(data), [1], [0])
    zeros = context.make_node("ConstantOfShape", [length], attr={"value": zero}).output[0]
    segments = context.make_node("Cast", [segments], attr={"to": onnx.TensorProto.INT64}).output[0]
    context.make_node(
        "ScatterElements",
        [zeros, segments, data],
        attr={"axis": 0, "reduction": "add"},
        name=name,
        outputs=node.output,
        shapes=shapes,
        dtypes=dtypes,
    )


def _name_axes(proto: Any) -> None:
    """Readable names for the axes of unknown length."""
    for tensor in (*proto.graph.input, *proto.graph.output):
        axes = tensor.type.tensor_type.shape.dim
        for axis, name in zip(axes, AXES.get(tensor.name, TABLE_AXES), strict=False):
            if not axis.HasField("dim_value"):
                axis.dim_param = name


OP_HANDLERS = {"FloorMod": _floor_mod, "Sigmoid": _exact_sigmoid, "UnsortedSegmentSum": _scatter_sum}
"""Instead of tf2onnx's own conversions."""


def _add_metadata(proto: Any, **values: str) -> None:
    for key, value in {**values, "kmaskformer_version": __version__}.items():
        proto.metadata_props.add(key=key, value=value)


def _check_proto(proto: Any) -> None:
    """Fails here, not in a runtime, if an operator is not ONNX's."""
    import onnx

    onnx.checker.check_model(proto)


def _check_opset(opset: int) -> None:
    if opset not in OPSETS:
        raise ValueError(f"`opset` must be one of {OPSETS.start}..{OPSETS.stop - 1}. Received: opset={opset}")
    try:
        import tf2onnx  # noqa: F401
    except ImportError as error:
        raise missing_extra("onnx", "ONNX export", error) from error
