"""The paper's general inference, one rule for every task.

Each pixel goes to the pair with the largest `p_i(c_i) * m_i[h, w]`, where `c_i` is the pair's most likely class and
pairs whose class is no-object do not take part. Pairs of one class are merged for a semantic map; for instances
the pair is the identity. General panoptic inference is `panoptic_inference` without its filters.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from keras import ops

from kmaskformer.inference.instance import mask_boxes
from kmaskformer.inference.pairs import assign_pixels, best_classes, count_pixels, large_enough, thing_flags


def general_semantic(
    class_logits: Any, mask_logits: Any, object_mask_threshold: float | None = None
) -> tuple[Any, Any]:
    """Semantic map by general inference: the class of the pair that each pixel belongs to.

    Args:
        class_logits: `(batch, queries, classes + 1)`, the last is no-object.
        mask_logits: `(batch, queries, height, width)`, at the size of the result.
        object_mask_threshold: If given, only pairs with a greater score take part.

    Returns:
        `class_map` `(batch, height, width)` int32 contiguous class ids, and `confidence` `(batch, height, width)`,
        the winning product, 0..1. In an image of which no pair takes part they are -1 (`structures.VOID`) and 0.

    References:
        [Per-Pixel Classification is Not All You Need for Semantic Segmentation](https://arxiv.org/abs/2107.06278),
        section 3.4, general inference.
    """
    scores, category_ids, kept = best_classes(class_logits, object_mask_threshold)
    pair_map, best = assign_pixels(scores, kept, ops.sigmoid(ops.cast(mask_logits, "float32")))
    flat = ops.reshape(pair_map, (ops.shape(pair_map)[0], -1))
    classes = ops.take_along_axis(category_ids, ops.maximum(flat, 0), axis=1)
    class_map = ops.reshape(ops.where(flat < 0, -1, classes), ops.shape(pair_map))
    return class_map, ops.maximum(best, 0.0)


def general_instances(
    class_logits: Any,
    mask_logits: Any,
    thing_ids: Sequence[int] | None = None,
    object_mask_threshold: float | None = None,
    overlap_threshold: float | None = None,
    score_threshold: float = 0.0,
) -> dict[str, Any]:
    """Instances by general inference: disjoint masks, one per pair of a thing class.

    Pairs of stuff classes compete for the pixels but are not reported.

    Args:
        class_logits: `(batch, queries, classes + 1)`, the last is no-object.
        mask_logits: `(batch, queries, height, width)`, at the size of the result.
        thing_ids: Contiguous ids of the thing classes. None: every class is a thing.
        object_mask_threshold: If given, only pairs with a greater score take part.
        overlap_threshold: If given, pairs are dropped that keep less than this part of their own mask.
        score_threshold: Instances with a lower `p_i(c_i)` are not valid.

    Returns:
        The tables of `instance_inference`, one row per query in the order of the queries.
    """
    flags = thing_flags(thing_ids, class_logits.shape[-1] - 1)
    scores, category_ids, kept = best_classes(class_logits, object_mask_threshold)
    mask_probs = ops.sigmoid(ops.cast(mask_logits, "float32"))
    pair_map, _ = assign_pixels(scores, kept, mask_probs)
    areas = count_pixels(pair_map, ops.shape(scores)[1])
    valid = ops.logical_and(kept, large_enough(areas, mask_probs, overlap_threshold))
    valid = ops.logical_and(valid, ops.take(ops.convert_to_tensor(flags), category_ids))
    valid = ops.logical_and(valid, scores >= score_threshold)
    query_ids = ops.broadcast_to(ops.arange(ops.shape(scores)[1], dtype="int32"), ops.shape(scores))
    masks = pair_map[:, None] == ops.where(valid, query_ids, -2)[:, :, None, None]
    return {
        "masks": masks,
        "category_ids": ops.where(valid, category_ids, 0),
        "scores": ops.where(valid, scores, 0.0),
        "boxes": mask_boxes(masks),
        "areas": ops.where(valid, areas, 0),
        "query_ids": query_ids,
        "valid": valid,
    }
