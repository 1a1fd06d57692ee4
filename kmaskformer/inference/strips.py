"""Semantic maps in bounded memory: the scores of all classes exist for a few rows of the image at a time.

With 847 classes at 2048 x 2048 pixels the scores alone are 14 GB. Only the best class of a pixel and its share are
wanted, and both resizes mix rows of a small neighbourhood only, so the map can be made strip by strip.
"""

from __future__ import annotations

from typing import Any

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
    mask_logits = ops.cast(mask_logits, "float32")
    sizes = [tuple(size[axis] for axis in (0, 1)) for size in (padded_size, image_size, output_size)]
    height = strip_height(class_logits.shape[-1] - 1, class_logits.shape[1], *sizes[1:], strip_bytes)
    score_strip = _masks_first(mask_logits, *sizes) if before_inference else _scores_first(mask_logits, *sizes, height)
    output_height, output_width = sizes[2]

    def add_strip(start: Any, class_map: Any, confidence: Any) -> tuple[Any, Any, Any]:
        # The last strip ends with the image and repeats rows of the one before.
        first = ops.minimum(start, output_height - height)
        classes, best = semantic_map(score_strip(class_logits, first, height))
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


def _masks_first(mask_logits: Any, padded_size: Size, image_size: Size, output_size: Size) -> Any:
    """Scores of a strip from mask logits that are resized to the output."""
    matrices = _chain(mask_logits, padded_size, image_size)
    rows, columns = (
        ops.matmul(interpolation_matrix(image_size[axis], output_size[axis]), matrices[axis]) for axis in (0, 1)
    )

    def score(class_logits: Any, first: Any, height: Any) -> Any:
        strip = ops.slice(rows, (first, 0), (height, ops.shape(rows)[1]))
        return semantic_scores(class_logits, multiply_both_sides(mask_logits, strip, columns))

    return score


def _scores_first(mask_logits: Any, padded_size: Size, image_size: Size, output_size: Size, strip: Any) -> Any:
    """Scores of a strip, resized to the output from those of the image rows that it needs."""
    enlarge, widen = _chain(mask_logits, padded_size, image_size)
    rows, columns = (interpolation_matrix(image_size[axis], output_size[axis]) for axis in (0, 1))
    scale = ops.cast(image_size[0], "float32") / ops.cast(output_size[0], "float32")
    # Two rows more than the strip covers: bilinear weights reach half a pixel beyond either end.
    span = ops.minimum(ops.cast(ops.ceil(ops.cast(strip, "float32") * scale), "int32") + 2, image_size[0])

    def score(class_logits: Any, first: Any, height: Any) -> Any:
        begin = ops.floor((ops.cast(first, "float32") + 0.5) * scale - 0.5)
        begin = ops.clip(ops.cast(begin, "int32"), 0, image_size[0] - span)
        needed = ops.slice(enlarge, (begin, 0), (span, ops.shape(enlarge)[1]))
        scores = semantic_scores(class_logits, multiply_both_sides(mask_logits, needed, widen))
        return multiply_both_sides(scores, ops.slice(rows, (first, begin), (height, span)), columns)

    return score


def _chain(mask_logits: Any, padded_size: Size, image_size: Size) -> list[Any]:
    """For rows and columns the weights that enlarge masks to the padded input and cut off the padding."""
    lengths = ops.shape(mask_logits)[2:]
    return [interpolation_matrix(lengths[axis], padded_size[axis])[: image_size[axis]] for axis in (0, 1)]
