"""What an exported model does, as TensorFlow graphs: from images or files to results at the images' own size."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import tensorflow as tf

from kmaskformer.data.transforms import shortest_edge_size
from kmaskformer.export.decoding import decode_image
from kmaskformer.export.pillow_resize import resize_bilinear_uint8
from kmaskformer.segmenter import Segmenter
from kmaskformer.structures import VOID

_MAP, _MASKS, _TABLE, _BOXES = (None, None), (None, None, None), (None,), (None, 4)

TASK_OUTPUTS = {
    "semantic": {"class_map": tf.TensorSpec(_MAP, tf.int32), "confidence": tf.TensorSpec(_MAP, tf.float32)},
    "panoptic": {
        "panoptic_map": tf.TensorSpec(_MAP, tf.int32),
        "num_segments": tf.TensorSpec((), tf.int32),
        "segment_ids": tf.TensorSpec(_TABLE, tf.int32),
        "category_ids": tf.TensorSpec(_TABLE, tf.int32),
        "is_thing": tf.TensorSpec(_TABLE, tf.bool),
        "scores": tf.TensorSpec(_TABLE, tf.float32),
        "areas": tf.TensorSpec(_TABLE, tf.int32),
        "boxes": tf.TensorSpec(_BOXES, tf.int32),
    },
    "instance": {
        "num_instances": tf.TensorSpec((), tf.int32),
        "masks": tf.TensorSpec(_MASKS, tf.bool),
        "category_ids": tf.TensorSpec(_TABLE, tf.int32),
        "scores": tf.TensorSpec(_TABLE, tf.float32),
        "areas": tf.TensorSpec(_TABLE, tf.int32),
        "boxes": tf.TensorSpec(_BOXES, tf.int32),
    },
}
"""What a task returns for one image. The names are part of every file written so far and must not change."""

VOIDS = {"class_map": VOID}
"""Value beyond the end of an image or a table, where it is not zero."""

TABLE_COLUMNS = ("segment_ids", "category_ids", "is_thing", "scores", "areas", "boxes", "masks")

IMAGES = tf.TensorSpec((None, None, None, 3), tf.uint8, name="images")
IMAGE_BYTES = tf.TensorSpec((None,), tf.string, name="image_bytes")

Tensors = dict[str, tf.Tensor]


class SegmentationSignature:
    """The functions of an export, for a `Segmenter`'s model, task, sizes and thresholds.

    The network sees a batch at once. What follows is done image by image, with the masks that can show only, as the
    `Segmenter` does: it needs a fraction of the memory.

    Args:
        segmenter: What to export.
        outputs: Names of the outputs to return, of `TASK_OUTPUTS[task]`; all of them if None.

    Raises:
        ValueError: If an output is none that the task has.
    """

    def __init__(self, segmenter: Segmenter, outputs: Sequence[str] | None = None) -> None:
        known = TASK_OUTPUTS[segmenter.task]
        self.outputs = tuple(known) if outputs is None else tuple(outputs)
        unknown = [name for name in self.outputs if name not in known]
        if unknown or not self.outputs:
            raise ValueError(
                f"`outputs` must name outputs of the task {segmenter.task}: {', '.join(known)}. "
                f"Received: outputs={tuple(self.outputs)!r}"
            )
        self.segmenter = segmenter
        self._specs = {name: known[name] for name in self.outputs}
        # Graphs of their own, so that the signatures share them and the file holds the network once.
        self._network = tf.function(self._predict, input_signature=[IMAGES], autograph=False)
        self._results = tf.function(self._results_of_one, autograph=False)

    def functions(self) -> dict[str, tf.types.experimental.ConcreteFunction]:
        """The signatures by name: `serving_default`, `serve_encoded` and `raw`."""
        return {
            "serving_default": _concrete(self.from_images, IMAGES),
            "serve_encoded": _concrete(self.from_encoded, IMAGE_BYTES),
            "raw": _concrete(self.raw, IMAGES),
        }

    def from_images(self, images: tf.Tensor) -> Tensors:
        """Results of a batch of images of one size.

        Args:
            images: `(batch, height, width, 3)` uint8 RGB.

        Returns:
            Semantic: `class_map` `(batch, height, width)` int32 contiguous class ids (-1 where general inference
            finds nothing) and `confidence` of the same shape, 0..1.

            Panoptic: `panoptic_map` `(batch, height, width)` int32, ids of the segments from 1, 0 where void;
            `num_segments` `(batch,)`; and the table, one row per segment and as many as the image with most has, of
            which `num_segments` count and the others hold zeros: `segment_ids`, `category_ids` (contiguous class ids),
            `areas` (pixels) int32, `is_thing` bool and `scores` float32, all `(batch, segments)`, and `boxes`
            `(batch, segments, 4)` int32 (left, top, right, bottom in pixels, right and bottom exclusive).

            Instance: `num_instances` `(batch,)` and as above `category_ids`, `scores`, `areas`, `boxes`, and `masks`
            `(batch, instances, height, width)` bool; by falling score, of general inference in the queries' order.
        """
        size = tf.shape(images)[1:3]
        predictions, padded, resized = self._network(images)
        return _stack_padded(
            tf.shape(images)[0],
            lambda index: self._results(predictions, index, padded, resized, size),
            self._specs,
        )

    def from_encoded(self, image_bytes: tf.Tensor) -> Tensors:
        """Results of a batch of JPEG or PNG files, which may differ in size.

        Every image passes the network on its own, as padding to a common size would change its result.

        Args:
            image_bytes: `(batch,)` strings, the bytes of the files.

        Returns:
            The tensors of `from_images`, and `image_sizes` `(batch, 2)` int32, height and width. Maps and masks are as
            large as the largest image, and what lies outside of an image is void.
        """

        def one(index: tf.Tensor) -> Tensors:
            images = decode_image(image_bytes[index])[None]
            size = tf.shape(images)[1:3]
            predictions, padded, resized = self._network(images)
            results = self._results(predictions, tf.constant(0), padded, resized, size)
            return {**results, "image_sizes": size}

        specs = {**self._specs, "image_sizes": tf.TensorSpec((2,), tf.int32)}
        return _stack_padded(tf.shape(image_bytes)[0], one, specs)

    def raw(self, images: tf.Tensor) -> Tensors:
        """What the network itself returns for images after the export's resizing.

        Args:
            images: `(batch, height, width, 3)` uint8 RGB.

        Returns:
            `class_logits` `(batch, queries, classes + 1)`, the last for no-object, and `mask_logits`
            `(batch, queries, height/4, width/4)` over the padded image; of a per-pixel model `logits`
            `(batch, height/4, width/4, classes)`.
        """
        return self._network(images)[0]

    def _predict(self, images: tf.Tensor) -> tuple[Tensors, tf.Tensor, tf.Tensor]:
        """The network's outputs, and the size of its input with and without padding."""
        segmenter = self.segmenter
        if segmenter.shortest_edge is not None or segmenter.longest_edge is not None:
            height, width = tf.unstack(tf.shape(images)[1:3])
            size = shortest_edge_size(height, width, segmenter.shortest_edge, segmenter.longest_edge)
            images = resize_bilinear_uint8(images, size)
        else:
            images = tf.cast(images, tf.float32)
        resized = tf.shape(images)[1:3]
        outputs = segmenter.model(images, training=False)
        logits = {key: outputs[key] for key in ("class_logits", "mask_logits", "logits") if key in outputs}
        return logits, tf.stack(segmenter.model.padded_size(resized[0], resized[1])), resized

    def _results_of_one(
        self, predictions: Tensors, index: tf.Tensor, padded: tf.Tensor, resized: tf.Tensor, size: tf.Tensor
    ) -> Tensors:
        """The results of one image of a batch, without a batch axis."""
        predictions = {key: value[index][None] for key, value in predictions.items()}
        results = self.segmenter.postprocess(predictions, padded, resized, size)
        results = {key: value[0] for key, value in results.items()}
        results = ARRANGE[self.segmenter.task](results)
        return {key: results[key] for key in self.outputs}


def _panoptic(results: Tensors) -> Tensors:
    table = _valid_rows(results)
    count = tf.shape(table["segment_ids"])[0]
    boxes = segment_boxes(results["panoptic_map"], count)
    return {**table, "panoptic_map": results["panoptic_map"], "num_segments": count, "boxes": boxes}


def _instance(results: Tensors) -> Tensors:
    table = _valid_rows(results)
    return {**table, "num_instances": tf.shape(table["scores"])[0]}


ARRANGE = {"semantic": dict, "panoptic": _panoptic, "instance": _instance}


def _valid_rows(results: Tensors) -> Tensors:
    rows = tf.where(results["valid"])[:, 0]
    return {key: tf.gather(value, rows) for key, value in results.items() if key in TABLE_COLUMNS}


def segment_boxes(panoptic_map: tf.Tensor, count: tf.Tensor) -> tf.Tensor:
    """Smallest box around each segment.

    Args:
        panoptic_map: `(height, width)` int32, ids `1 .. count`, each of which occurs, and 0.
        count: Number of segments.

    Returns:
        `(count, 4)` int32: left, top, right, bottom in pixels, right and bottom exclusive.
    """
    ids = tf.reshape(panoptic_map, (-1,))
    rows, columns = tf.meshgrid(*(tf.range(tf.shape(panoptic_map)[i]) for i in (0, 1)), indexing="ij")
    places = tf.stack([tf.reshape(columns, (-1,)), tf.reshape(rows, (-1,))], axis=-1)
    low = tf.math.unsorted_segment_min(places, ids, count + 1)[1:]
    high = tf.math.unsorted_segment_max(places, ids, count + 1)[1:]
    return tf.concat([low, high + 1], axis=-1)


def _stack_padded(
    count: tf.Tensor, function: Callable[[tf.Tensor], Tensors], specs: dict[str, tf.TensorSpec]
) -> Tensors:
    """`function(i)` for each `i < count`, one after the other, padded at the end to common shapes and stacked."""
    arrays = {key: _array(spec, count) for key, spec in specs.items()}
    shapes = {key: tf.zeros([spec.shape.rank], tf.int32) for key, spec in specs.items()}

    def step(index: tf.Tensor, arrays: dict[str, tf.TensorArray], shapes: Tensors) -> tuple[Any, ...]:
        results = function(index)
        arrays = {key: array.write(index, results[key]) for key, array in arrays.items()}
        return index + 1, arrays, {key: tf.maximum(shapes[key], tf.shape(results[key])) for key in shapes}

    _, arrays, shapes = tf.while_loop(
        lambda index, *_: index < count, step, (tf.constant(0), arrays, shapes), parallel_iterations=1
    )
    return {key: _padded(arrays[key], count, shapes[key], spec, VOIDS.get(key, 0)) for key, spec in specs.items()}


def _array(spec: tf.TensorSpec, count: tf.Tensor) -> tf.TensorArray:
    return tf.TensorArray(spec.dtype, size=count, infer_shape=False, element_shape=spec.shape, clear_after_read=True)


def _padded(array: tf.TensorArray, count: tf.Tensor, shape: tf.Tensor, spec: tf.TensorSpec, fill: int) -> tf.Tensor:
    if spec.shape.is_fully_defined():
        return array.stack()

    def pad(index: tf.Tensor) -> tf.Tensor:
        value = array.read(index)
        after = shape - tf.shape(value)
        padded = tf.pad(
            value, tf.stack([tf.zeros_like(after), after], axis=1), constant_values=tf.cast(fill, spec.dtype)
        )
        return tf.ensure_shape(padded, spec.shape)

    return tf.map_fn(pad, tf.range(count), fn_output_signature=spec, parallel_iterations=1)


def _concrete(function: Callable[[tf.Tensor], Tensors], spec: tf.TensorSpec) -> Any:
    return tf.function(function, input_signature=[spec], autograph=False).get_concrete_function()
