"""Semantic maps in bounded memory: the scores of all classes exist for a few rows of the image at a time.

With 847 classes at 2048 x 2048 pixels the scores alone are 14 GB. Only the best class of a pixel and its share are
wanted, and both resizes mix rows of a small neighbourhood only, so the map can be made strip by strip.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from keras import ops

from kmaskformer.inference.restore import Size
from kmaskformer.inference.semantic import pixel_map, semantic_map, semantic_scores

STRIP_BYTES = 256 * 2**20
"""Memory for the scores and masks of one strip, about; what else is needed does not depend on the classes."""


def semantic_map_in_strips(
    class_logits: Any,
    mask_logits: Any,
    padded_size: Size,
    image_size: Size,
    output_size: Size,
    before_inference: bool = False,
    strip_bytes: int = STRIP_BYTES,
) -> tuple[Any, Any]:
    """The maps that `semantic_map(semantic_inference(...))` gives, of an image, in bounded memory.

    Args:
        class_logits: `(1, queries, classes + 1)`.
        mask_logits: `(1, queries, height/4, width/4)`, as the model returns them.
        padded_size: Size of the input after padding.
        image_size: Size of the image that went into the model.
        output_size: Size wanted.
        before_inference: As in `semantic_inference`: what is resized to the output, mask logits or class scores.
        strip_bytes: Bound of the memory for a strip's scores and masks; a single row may need more.

    Returns:
        `class_map` `(1, *output_size)` int32 and `confidence` `(1, *output_size)`, as `semantic_map` returns them.
    """
    view = MapView(class_logits, mask_logits, padded_size, image_size)
    return mean_semantic_map([view], output_size, before_inference, strip_bytes)


class MapView(NamedTuple):
    """The model's outputs for one view of an image, as in `semantic_map_in_strips`; `flipped` if it was mirrored.

    `class_logits` is None for a per-pixel model, whose logits `(1, classes, height/4, width/4)` then take
    the masks' place.
    """

    class_logits: Any
    mask_logits: Any
    padded_size: Size
    image_size: Size
    flipped: bool = False


def pixel_view(logits: Any, image_size: Size, flipped: bool = False, stride: int = 4) -> MapView:
    """The view of a per-pixel model.

    Args:
        logits: `(1, height/stride, width/stride, classes)`.
        image_size: Size of the image that went into the model.
        flipped: Whether the image was mirrored.
        stride: As in `restore_pixel_logits`.
    """
    shape = ops.shape(logits)
    padded_size = (shape[1] * stride, shape[2] * stride)
    return MapView(None, ops.transpose(logits, (0, 3, 1, 2)), padded_size, image_size, flipped)


def mean_semantic_map(
    views: Sequence[MapView], output_size: Size, before_inference: bool = False, strip_bytes: int = STRIP_BYTES
) -> tuple[Any, Any]:
    """The map of the mean of several views' class scores, each brought to the output's size and mirrored back.

    Of per-pixel models it is the logits that are averaged.

    Args:
        views: Outputs of one model for one or more views of an image.
        output_size: Size wanted.
        before_inference: As in `semantic_inference`.
        strip_bytes: As in `semantic_map_in_strips`.

    Returns:
        The maps of `semantic_map_in_strips`.
    """
    output_size = output_height, output_width = output_size[0], output_size[1]
    height = functools.reduce(
        ops.minimum, [strip_height(*_counts(view), view.image_size, output_size, strip_bytes) for view in views]
    )
    scorers = [_scorer(view, output_size, before_inference, height) for view in views]
    to_map = pixel_map if views[0].class_logits is None else semantic_map

    def add_strip(start: Any, class_map: Any, confidence: Any) -> tuple[Any, Any, Any]:
        # The last strip ends with the image and repeats rows of the one before.
        first = ops.minimum(start, output_height - height)
        scores = scorers[0](first)
        for score in scorers[1:]:
            scores = scores + score(first)
        classes, best = to_map(scores / len(scorers))
        rows = (0, first, 0)
        return start + height, ops.slice_update(class_map, rows, classes), ops.slice_update(confidence, rows, best)

    shape = (1, output_height, output_width)
    state = (ops.cast(0, "int32"), ops.zeros(shape, "int32"), ops.zeros(shape, "float32"))
    _, class_map, confidence = ops.while_loop(lambda start, *_: start < output_height, add_strip, state)
    return class_map, confidence


def strip_height(num_classes: int, num_queries: int, image_size: Size, output_size: Size, strip_bytes: int) -> Any:
    """Rows of the output whose class scores and masks fit into the memory."""
    width = ops.maximum(image_size[1], output_size[1])
    # A row of the output needs so many of the image; the values of both exist, and copies while they are resized.
    rows = 1 + -(-image_size[0] // output_size[0])
    row_bytes = 4 * 4 * (num_classes + num_queries) * width * rows
    return ops.clip(strip_bytes // row_bytes, 1, output_size[0])


def _counts(view: MapView) -> tuple[int, int]:
    """Numbers of classes and queries."""
    if view.class_logits is None:
        return view.mask_logits.shape[1], 0
    return view.class_logits.shape[-1] - 1, view.class_logits.shape[1]


def _scorer(view: MapView, output_size: Size, before_inference: bool, height: Any) -> Callable[[Any], Any]:
    """From the first row of a strip of the output to its scores `(1, classes, height, output width)`."""
    mask_logits = ops.cast(view.mask_logits, "float32")
    # By index: in an export the size is a tensor, which cannot be unpacked.
    image_height, image_width = view.image_size[0], view.image_size[1]
    to_scores = functools.partial(semantic_scores, view.class_logits)
    if view.class_logits is None:
        before_inference, to_scores = True, lambda logits: logits
    mask_height, mask_width = ops.shape(mask_logits)[2:]
    mask_columns = _samples(0, image_width, mask_width, view.padded_size[1])
    columns = _samples(0, output_size[1], image_width, output_size[1])
    scale = ops.cast(image_height, "float32") / ops.cast(output_size[0], "float32")
    # Bilinear weights reach one row beyond those that the strip covers, at either end.
    span = ops.minimum(ops.cast(ops.ceil(ops.cast(height, "float32") * scale), "int32") + 2, image_height)

    def score(first: Any) -> Any:
        above, below, weights = _samples(first, height, image_height, output_size[0])
        begin = ops.minimum(above[0], image_height - span)
        masks = _resize_axis(mask_logits, *_samples(begin, span, mask_height, view.padded_size[0]), axis=2)
        masks = _resize_axis(masks, *mask_columns, axis=3)
        values = masks if before_inference else to_scores(masks)
        values = _resize_axis(values, above - begin, below - begin, weights, axis=2)
        values = _resize_axis(values, *columns, axis=3)
        scores = to_scores(values) if before_inference else values
        return ops.flip(scores, axis=-1) if view.flipped else scores

    return score


def _samples(first: Any, count: Any, old_size: Any, new_size: Any) -> tuple[Any, Any, Any]:
    """The two old pixels between which each of `count` new ones lies, and the weight of the second, `(count,)`.

    As in `interpolation_matrix`; a matrix with two entries a row would cost a thousand times the work here.
    """
    scale = ops.cast(old_size, "float32") / ops.cast(new_size, "float32")
    centers = (ops.cast(first + ops.arange(count, dtype="int32"), "float32") + 0.5) * scale - 0.5
    centers = ops.clip(centers, 0.0, ops.cast(old_size, "float32") - 1.0)
    lower = ops.floor(centers)
    index = ops.cast(lower, "int32")
    return index, ops.minimum(index + 1, old_size - 1), centers - lower


def _resize_axis(values: Any, lower: Any, upper: Any, weights: Any, axis: int) -> Any:
    weights = weights[:, None] if axis == 2 else weights
    return ops.take(values, lower, axis=axis) * (1.0 - weights) + ops.take(values, upper, axis=axis) * weights
