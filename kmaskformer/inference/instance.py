"""Instance inference: scored masks of things, which may overlap.

The reference has no instance inference. This one follows the convention of the field (Mask2Former's and Hugging Face's
post-processing), with two differences: stuff classes never take a place among the candidates, and masks are cut
from logits at the output size rather than enlarged after the cut.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from keras import ops

from kmaskformer.inference.pairs import thing_flags


def instance_inference(
    class_logits: Any,
    mask_logits: Any,
    thing_ids: Sequence[int] | None = None,
    max_instances: int | None = None,
    score_threshold: float = 0.5,
) -> dict[str, Any]:
    """Instance segmentation of a batch.

    The candidates are the `max_instances` most probable of all combinations of a query and a thing class, so that one
    query may give two instances of different classes. A candidate's mask is where its logit is positive, and its
    score the class probability times the mean mask probability over the mask.

    Args:
        class_logits: `(batch, queries, classes + 1)`, the last is no-object.
        mask_logits: `(batch, queries, height, width)`, at the size of the result.
        thing_ids: Contiguous ids of the thing classes. None: every class is a thing.
        max_instances: Number of candidates; the number of queries if None.
        score_threshold: Instances with a lower score are not valid. Use 0 to evaluate average precision.

    Returns:
        Tables with one row per candidate, by falling score: `masks` `(batch, instances, height, width)` bool,
        `category_ids` int32 contiguous, `scores` 0..1, `boxes` `(batch, instances, 4)` int32 (left, top, right,
        bottom; right and bottom exclusive), `areas` int32 pixels, `query_ids` int32, and `valid` bool,
        False also for the candidates that are no thing where there are fewer pairs than candidates.
    """
    masks = mask_logits > 0
    class_scores, category_ids, query_ids = _candidates(class_logits, thing_ids, max_instances)
    quality = _mean_inside(ops.sigmoid(ops.cast(mask_logits, "float32")), masks)
    scores = class_scores * ops.take_along_axis(quality, query_ids, axis=1)
    order = ops.argsort(-scores, axis=1)
    scores, category_ids, query_ids = (ops.take_along_axis(x, order, axis=1) for x in (scores, category_ids, query_ids))
    # Where there are fewer combinations than places, stuff fills the last ones.
    is_thing = ops.take(thing_flags(thing_ids, class_logits.shape[-1] - 1), category_ids)
    areas = ops.take_along_axis(ops.sum(ops.cast(masks, "int32"), axis=(2, 3)), query_ids, axis=1)
    return {
        "masks": _masks_of(masks, query_ids),
        "category_ids": category_ids,
        "scores": scores,
        "boxes": ops.take_along_axis(mask_boxes(masks), query_ids[:, :, None], axis=1),
        "areas": areas,
        "query_ids": query_ids,
        "valid": ops.logical_and(is_thing, ops.logical_and(areas > 0, scores >= score_threshold)),
    }


def mask_boxes(masks: Any) -> Any:
    """Smallest box around each mask.

    Args:
        masks: `(..., height, width)` bool.

    Returns:
        `(..., 4)` int32: left, top, right, bottom in pixels, right and bottom exclusive; all 0 for an empty mask.
    """
    left, right = _extent(ops.any(masks, axis=-2))
    top, bottom = _extent(ops.any(masks, axis=-1))
    return ops.stack([left, top, right, bottom], axis=-1)


def _candidates(class_logits: Any, thing_ids: Sequence[int] | None, max_instances: int | None) -> tuple[Any, Any, Any]:
    """Class probability, class and query of the most probable combinations, each `(batch, instances)`."""
    num_classes = class_logits.shape[-1] - 1
    flags = ops.convert_to_tensor(thing_flags(thing_ids, num_classes)[:-1])
    probs = ops.softmax(ops.cast(class_logits, "float32"), axis=-1)[..., :-1]
    batch, queries, _ = ops.shape(probs)
    flat = ops.reshape(ops.where(flags, probs, 0.0), (batch, -1))
    scores, indices = ops.top_k(flat, _smaller(max_instances or queries, queries * num_classes))
    indices = ops.cast(indices, "int32")
    return scores, indices % num_classes, indices // num_classes


def _masks_of(masks: Any, query_ids: Any) -> Any:
    """`masks[b, query_ids[b]]` for every image; a gather of whole masks, which `take_along_axis` is not."""
    batch, queries, height, width = ops.shape(masks)
    rows = query_ids + queries * ops.arange(batch, dtype="int32")[:, None]
    return ops.take(ops.reshape(masks, (batch * queries, height, width)), rows, axis=0)


def _smaller(first: Any, second: Any) -> Any:
    if isinstance(first, int) and isinstance(second, int):
        return min(first, second)
    return ops.minimum(first, second)


def _mean_inside(mask_probs: Any, masks: Any) -> Any:
    """Mean probability over each mask's pixels, `(batch, queries)`; 0 for an empty mask."""
    inside = ops.cast(masks, "float32")
    return ops.sum(mask_probs * inside, axis=(2, 3)) / (ops.sum(inside, axis=(2, 3)) + 1e-6)


def _extent(occupied: Any) -> tuple[Any, Any]:
    """First occupied position and the one after the last, of `(..., length)` bool."""
    length = ops.shape(occupied)[-1]
    positions = ops.arange(length, dtype="int32")
    first = ops.min(ops.where(occupied, positions, length), axis=-1)
    end = ops.max(ops.where(occupied, positions + 1, 0), axis=-1)
    return ops.where(end > 0, first, 0), end
