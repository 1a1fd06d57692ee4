"""What a mask-classification model predicts: pairs of a class distribution and a mask, one pair per query.

The parts that the kinds of inference share: which class a pair stands for, which pair a pixel belongs to, and how
many pixels a pair has.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from keras import ops

from kmaskformer.ops.argmax import max_and_argmax


def thing_flags(thing_ids: Sequence[int] | None, num_classes: int) -> np.ndarray:
    """Table `(classes + 1,)` bool: True for things, False for stuff and for no-object, the last entry.

    Args:
        thing_ids: Contiguous ids of the thing classes. None: every class is a thing.
        num_classes: Number of classes, without no-object.

    Raises:
        ValueError: If an id is not one of the classes.
    """
    ids = range(num_classes) if thing_ids is None else [int(i) for i in thing_ids]
    outside = [i for i in ids if not 0 <= i < num_classes]
    if outside:
        raise ValueError(
            f"`thing_ids` must lie in 0..{num_classes - 1}, the classes of `class_logits` without no-object. "
            f"Received: {outside}"
        )
    flags = np.zeros(num_classes + 1, dtype=bool)
    flags[list(ids)] = True
    return flags


def best_classes(class_logits: Any, score_threshold: float | None = None) -> tuple[Any, Any, Any]:
    """The class that each pair stands for, `c_i = argmax p_i(c)` with no-object among the candidates.

    Args:
        class_logits: `(batch, queries, classes + 1)`, the last is no-object.
        score_threshold: If given, only pairs whose score is greater are kept.

    Returns:
        `scores` `(batch, queries)` 0..1, `category_ids` `(batch, queries)` int32 (`classes` for no-object), and `kept`
        `(batch, queries)` bool: the class is not no-object and the score is above the threshold.
    """
    probs = ops.softmax(ops.cast(class_logits, "float32"), axis=-1)
    scores, category_ids = max_and_argmax(probs, axis=-1)
    kept = category_ids != class_logits.shape[-1] - 1
    if score_threshold is not None:
        kept = ops.logical_and(kept, scores > score_threshold)
    return scores, category_ids, kept


def assign_pixels(scores: Any, kept: Any, mask_probs: Any) -> tuple[Any, Any]:
    """Each pixel to the pair with the largest `p_i(c_i) * m_i[pixel]` among the kept ones, the first of equals.

    Args:
        scores: `(batch, queries)`, `p_i(c_i)`.
        kept: `(batch, queries)` bool.
        mask_probs: `(batch, queries, height, width)`, 0..1.

    Returns:
        `pair_map` `(batch, height, width)` int32, index of a query, and `best` `(batch, height, width)`, the winning
        product. Both are -1 everywhere in an image of which no pair is kept.
    """
    products = ops.where(kept[:, :, None, None], scores[:, :, None, None] * mask_probs, -1.0)
    best, pair_map = max_and_argmax(products, axis=1)
    return ops.where(best < 0.0, -1, pair_map), best


def count_pixels(pair_map: Any, num_queries: Any) -> Any:
    """Number of pixels of each pair.

    Args:
        pair_map: `(batch, height, width)` int32, index of a query or -1.
        num_queries: Number of pairs.

    Returns:
        `(batch, queries)` int32.
    """
    batch = ops.shape(pair_map)[0]
    # Bin 0 of each image takes the pixels of no pair.
    bins = ops.reshape(pair_map, (batch, -1)) + 1 + ops.arange(batch)[:, None] * (num_queries + 1)
    bins = ops.reshape(bins, (-1,))
    counts = ops.segment_sum(ops.ones_like(bins), bins, num_segments=batch * (num_queries + 1))
    return ops.reshape(counts, (batch, num_queries + 1))[:, 1:]


def large_enough(areas: Any, mask_probs: Any, overlap_threshold: float | None) -> Any:
    """Which pairs won enough of their own mask.

    Args:
        areas: `(batch, queries)` int32, pixels that the pair won.
        mask_probs: `(batch, queries, height, width)`, 0..1; a pair's own mask is where it is at least one half.
        overlap_threshold: The least ratio of the two areas; exactly this is enough. None: any pixel is.

    Returns:
        `(batch, queries)` bool.
    """
    if overlap_threshold is None:
        return areas > 0
    own_areas = ops.sum(ops.cast(mask_probs >= 0.5, "int32"), axis=(2, 3))
    ratio = ops.cast(areas, "float32") / ops.cast(ops.maximum(own_areas, 1), "float32")
    return ops.logical_and(ops.logical_and(areas > 0, own_areas > 0), ratio >= overlap_threshold)


def select_queries(class_logits: Any, mask_logits: Any, kept: Any) -> tuple[Any, Any]:
    """Only the kept queries of one image, so that the others' masks need not be enlarged.

    Ten of a hundred queries typically remain. The number differs from image to image, so this is for one image at a
    time, in eager code or in a `tf.function`, not under `jax.jit` or XLA.

    Args:
        class_logits: `(1, queries, classes + 1)`.
        mask_logits: `(1, queries, height, width)`.
        kept: `(1, queries)` bool.

    Returns:
        The two arrays with fewer queries, in the same order; one remains where none is kept.
    """
    first = ops.arange(ops.shape(kept)[1]) == 0
    wanted = ops.where(ops.any(kept), kept[0], first)
    indices = ops.nonzero(wanted)[0]
    return ops.take(class_logits, indices, axis=1), ops.take(mask_logits, indices, axis=1)
