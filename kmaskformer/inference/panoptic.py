"""Panoptic inference: every pixel to one segment, things as instances, each stuff class as one segment."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from keras import ops

from kmaskformer.inference.pairs import assign_pixels, best_classes, count_pixels, large_enough, thing_flags


def panoptic_inference(
    class_logits: Any,
    mask_logits: Any,
    thing_ids: Sequence[int],
    object_mask_threshold: float | None = 0.8,
    overlap_threshold: float | None = 0.8,
) -> dict[str, Any]:
    """Panoptic segmentation of a batch, with the reference's two filters.

    Pairs of a real class with a score above `object_mask_threshold` compete for the pixels. A pair is dropped, and its
    pixels become void, if the pixels it won are fewer than `overlap_threshold` times its own mask (probability of at
    least one half, not weighted by the score). The others get ids from 1 in the order of the queries; all pairs of
    one stuff class share the id of the first. A segment is painted with all the pixels that its pairs won.

    Args:
        class_logits: `(batch, queries, classes + 1)`, the last is no-object.
        mask_logits: `(batch, queries, height, width)`, at the size of the result.
        thing_ids: Contiguous ids of the thing classes; all others are stuff.
        object_mask_threshold: The score must be greater than this. None: every pair of a real class competes.
        overlap_threshold: The kept part of a mask must be at least this. None: no pair is dropped, not even one whose
            own mask is empty.

    Returns:
        `panoptic_map` `(batch, height, width)` int32, 0 where void, and a table with one row per query, all
        `(batch, queries)`: `valid` bool, whether the query begins a segment, and where it does `segment_ids` int32,
        `category_ids` int32 contiguous, `is_thing` bool, `scores` 0..1 (the highest of the segment's pairs) and
        `areas` int32 pixels. Rows that are not valid hold 0 and False.

    References:
        [Per-Pixel Classification is Not All You Need for Semantic Segmentation](https://arxiv.org/abs/2107.06278),
        section 3.4.
    """
    scores, category_ids, kept = best_classes(class_logits, object_mask_threshold)
    is_thing = ops.take(ops.convert_to_tensor(thing_flags(thing_ids, class_logits.shape[-1] - 1)), category_ids)
    mask_probs = ops.sigmoid(ops.cast(mask_logits, "float32"))
    pair_map, _ = assign_pixels(scores, kept, mask_probs)
    areas = count_pixels(pair_map, ops.shape(scores)[1])
    accepted = ops.logical_and(kept, large_enough(areas, mask_probs, overlap_threshold))
    same_segment = _same_segment(category_ids, is_thing, accepted)
    ids_of_pairs, begins = _segment_ids(same_segment, accepted)
    return {
        "panoptic_map": _paint(pair_map, ids_of_pairs),
        "valid": begins,
        "segment_ids": ops.where(begins, ids_of_pairs, 0),
        "category_ids": ops.where(begins, category_ids, 0),
        "is_thing": ops.logical_and(begins, is_thing),
        "scores": ops.where(begins, ops.max(ops.where(same_segment, scores[:, None], 0.0), axis=-1), 0.0),
        "areas": ops.where(begins, ops.sum(ops.where(same_segment, areas[:, None], 0), axis=-1), 0),
    }


def _same_segment(category_ids: Any, is_thing: Any, accepted: Any) -> Any:
    """`(batch, queries, queries)` bool: both pairs are accepted, and are one pair or of one stuff class."""
    both = ops.logical_and(accepted[:, :, None], accepted[:, None, :])
    stuff = ops.logical_and(category_ids[:, :, None] == category_ids[:, None, :], ops.logical_not(is_thing)[:, :, None])
    order = ops.arange(ops.shape(accepted)[1])
    return ops.logical_and(both, ops.logical_or(stuff, order[:, None] == order[None]))


def _segment_ids(same_segment: Any, accepted: Any) -> tuple[Any, Any]:
    """Id of each pair's segment, 0 where it is not accepted, and whether the pair is the first of its segment."""
    first = ops.argmax(ops.cast(same_segment, "int32"), axis=-1)
    first = ops.cast(first, "int32")
    begins = ops.logical_and(accepted, first == ops.arange(ops.shape(accepted)[1], dtype="int32"))
    ids = ops.cumsum(ops.cast(begins, "int32"), axis=-1)
    return ops.where(accepted, ops.take_along_axis(ids, first, axis=-1), 0), begins


def _paint(pair_map: Any, ids_of_pairs: Any) -> Any:
    """Replaces each pixel's query by the id of the query's segment."""
    flat = ops.reshape(pair_map, (ops.shape(pair_map)[0], -1))
    ids = ops.take_along_axis(ids_of_pairs, ops.maximum(flat, 0), axis=-1)
    return ops.reshape(ops.where(flat < 0, 0, ids), ops.shape(pair_map))
