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
from kmaskformer.inference.semantic import semantic_map, semantic_scores
from kmaskformer.ops.resize import interpolation_matrix, multiply_both_sides

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
    """The model's outputs for one view of an image, as in `semantic_map_in_strips`; `flipped` if it was mirrored."""

    class_logits: Any
    mask_logits: Any
    padded_size: Size
    image_size: Size
    flipped: bool = False


def mean_semantic_map(
    views: Sequence[MapView], output_size: Size, before_inference: bool = False, strip_bytes: int = STRIP_BYTES
) -> tuple[Any, Any]:
    """The map of the mean of several views' class scores, each brought to the output's size and mirrored back.

    Args:
        views: Outputs for one or more views of an image.
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

    def add_strip(start: Any, class_map: Any, confidence: Any) -> tuple[Any, Any, Any]:
        # The last strip ends with the image and repeats rows of the one before.
        first = ops.minimum(start, output_height - height)
        scores = scorers[0](first)
        for score in scorers[1:]:
            scores = scores + score(first)
        classes, best = semantic_map(scores / len(scorers))
        rows = (0, first, 0)
        return start + height, ops.slice_update(class_map, rows, classes), ops.slice_update(confidence, rows, best)

    shape = (1, output_height, output_width)
    state = (ops.cast(0, "int32"), ops.zeros(shape, "int32"), ops.zeros(shape, "float32"))
    _, class_map, confidence = ops.while_loop(lambda start, *_: start < output_height, add_strip, state)
    return class_map, confidence


def strip_height(num_classes: int, num_queries: int, image_size: Size, output_size: Size, strip_bytes: int) -> Any:
    """Rows of the output that fit into the memory: of each the class scores at both sizes and the masks."""
    width = ops.maximum(image_size[1], output_size[1])
    # A strip of the output needs as many rows of the image as the scale says; both have their scores.
    rows = 1 + -(-image_size[0] // output_size[0])
    row_bytes = 4 * (2 * num_classes + 2 * num_queries) * width * rows
    return ops.clip(strip_bytes // row_bytes, 1, output_size[0])


def _counts(view: MapView) -> tuple[int, int]:
    return view.class_logits.shape[-1] - 1, view.class_logits.shape[1]


def _scorer(view: MapView, output_size: Size, before_inference: bool, height: Any) -> Callable[[Any], Any]:
    """From the first row of a strip of the output to its scores `(1, classes, height, output width)`."""
    score = (_masks_first if before_inference else _scores_first)(view, output_size, height)
    return (lambda first: ops.flip(score(first), axis=-1)) if view.flipped else score


def _masks_first(view: MapView, output_size: Size, height: Any) -> Callable[[Any], Any]:
    """Scores from mask logits that are resized to the output."""
    mask_logits = ops.cast(view.mask_logits, "float32")
    rows, columns = (
        ops.matmul(interpolation_matrix(view.image_size[axis], output_size[axis]), matrix)
        for axis, matrix in enumerate(_enlarging(view))
    )

    def score(first: Any) -> Any:
        strip = ops.slice(rows, (first, 0), (height, ops.shape(rows)[1]))
        return semantic_scores(view.class_logits, multiply_both_sides(mask_logits, strip, columns))

    return score


def _scores_first(view: MapView, output_size: Size, height: Any) -> Callable[[Any], Any]:
    """Scores that are resized to the output, from those of the rows of the view that the strip needs."""
    mask_logits, image_height = ops.cast(view.mask_logits, "float32"), view.image_size[0]
    enlarge, widen = _enlarging(view)
    rows, columns = (interpolation_matrix(view.image_size[axis], output_size[axis]) for axis in (0, 1))
    scale = ops.cast(image_height, "float32") / ops.cast(output_size[0], "float32")
    # Two rows more than the strip covers: bilinear weights reach half a pixel beyond either end.
    span = ops.minimum(ops.cast(ops.ceil(ops.cast(height, "float32") * scale), "int32") + 2, image_height)

    def score(first: Any) -> Any:
        begin = ops.floor((ops.cast(first, "float32") + 0.5) * scale - 0.5)
        begin = ops.clip(ops.cast(begin, "int32"), 0, image_height - span)
        needed = ops.slice(enlarge, (begin, 0), (span, ops.shape(enlarge)[1]))
        scores = semantic_scores(view.class_logits, multiply_both_sides(mask_logits, needed, widen))
        return multiply_both_sides(scores, ops.slice(rows, (first, begin), (height, span)), columns)

    return score


def _enlarging(view: MapView) -> list[Any]:
    """For rows and columns the weights that enlarge masks to the padded input and cut off the padding."""
    lengths = ops.shape(view.mask_logits)[2:]
    return [interpolation_matrix(lengths[axis], view.padded_size[axis])[: view.image_size[axis]] for axis in (0, 1)]
