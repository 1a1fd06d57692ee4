"""Semantic inference: one class per pixel, from all pairs together."""

from __future__ import annotations

from typing import Any

from keras import ops

from kmaskformer.inference.restore import Size, restore_class_scores, restore_mask_logits, upsample_mask_logits
from kmaskformer.ops.argmax import max_and_argmax


def semantic_scores(class_logits: Any, mask_logits: Any) -> Any:
    """Score of every class at every pixel, `sum_i p_i(c) * m_i[h, w]` over the pairs, no-object left out.

    Args:
        class_logits: `(batch, queries, classes + 1)`, the last is no-object.
        mask_logits: `(batch, queries, height, width)`.

    Returns:
        `(batch, classes, height, width)`, at least 0 and not normalised: the scores of a pixel need not sum to 1.

    References:
        [Per-Pixel Classification is Not All You Need for Semantic Segmentation](https://arxiv.org/abs/2107.06278),
        section 3.4, semantic inference.
    """
    class_probs = ops.softmax(ops.cast(class_logits, "float32"), axis=-1)[..., :-1]
    mask_probs = ops.sigmoid(ops.cast(mask_logits, "float32"))
    return ops.einsum("bqc,bqhw->bchw", class_probs, mask_probs)


def semantic_inference(
    class_logits: Any,
    mask_logits: Any,
    padded_size: Size,
    image_size: Size,
    output_size: Size,
    before_inference: bool = False,
) -> Any:
    """Class scores at the output size, from the model's own outputs.

    Args:
        class_logits: `(batch, queries, classes + 1)`.
        mask_logits: `(batch, queries, height/4, width/4)`, as the model returns them.
        padded_size: Size of the input after padding.
        image_size: Size of the image that went into the model.
        output_size: Size wanted.
        before_inference: What is cropped and resized to the output. False, as in the published semantic models: the
            class scores, computed at the padded size. True, as in the published panoptic models: the mask logits,
            from which the scores are computed; needs less memory where there are more classes than queries.

    Returns:
        `(batch, classes, *output_size)` scores.
    """
    if before_inference:
        restored = restore_mask_logits(mask_logits, padded_size, image_size, output_size)
        return semantic_scores(class_logits, restored)
    scores = semantic_scores(class_logits, upsample_mask_logits(mask_logits, padded_size))
    return restore_class_scores(scores, image_size, output_size)


def semantic_map(scores: Any) -> tuple[Any, Any]:
    """The best class of every pixel and its share of the pixel's scores.

    Args:
        scores: `(batch, classes, height, width)`, at least 0.

    Returns:
        `class_map` `(batch, height, width)` int32 contiguous class ids, and `confidence` `(batch, height, width)`,
        0..1: the best score over the sum of all.
    """
    best, class_map = max_and_argmax(scores, axis=1)
    confidence = best / ops.maximum(ops.sum(scores, axis=1), 1e-12)
    return class_map, confidence


def pixel_map(logits: Any) -> tuple[Any, Any]:
    """The best class of every pixel, and its probability, from the logits of a per-pixel model.

    Args:
        logits: `(batch, classes, height, width)`.

    Returns:
        `class_map` `(batch, height, width)` int32 contiguous class ids, and `confidence` `(batch, height, width)`, the
        softmax probability of that class.
    """
    largest, class_map = max_and_argmax(logits, axis=1)
    confidence = 1.0 / ops.sum(ops.exp(logits - largest[:, None]), axis=1)
    return class_map, confidence
