"""Segment maps and binary masks.

A batch travels as one map of segment indices and a table; the binary masks exist only on the device, where they are
used (100 dense float masks of 640x640 pixels are 164 MB an image).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from keras import ops

from kmaskformer.ops.resize import resize_nearest
from kmaskformer.structures import VOID, Targets

Tensor = Any

MASK_STRIDE = 4
"""Pixels of the padded image for each pixel of the mask logits."""


def masks_from_segment_map(segment_map: Tensor, num_segments: Any, dtype: str = "bool") -> Tensor:
    """One binary mask per row of the segment table.

    Args:
        segment_map: `(batch, height, width)` integers: row of the table, or -1 where a pixel is in no segment.
        num_segments: Number of rows, integer or scalar int32 tensor.
        dtype: Of the masks.

    Returns:
        `(batch, num_segments, height, width)`, 1 or True inside the segment.
    """
    segment_map = ops.cast(segment_map, "int32")
    rows = ops.arange(num_segments, dtype="int32")
    return ops.cast(ops.expand_dims(segment_map, 1) == rows[None, :, None, None], dtype)


def target_masks(targets: Targets, size: tuple[Any, Any] | None = None, dtype: str = "bool") -> Tensor:
    """Binary masks of a batch of targets, from whichever of `segment_map` and `masks` it has.

    Args:
        targets: Batch of targets.
        size: Height and width to which the masks are shrunk, by nearest sampling; None keeps their size.
        dtype: Of the result.

    Returns:
        `(batch, segments, height, width)`.
    """
    if "masks" in targets:
        masks = ops.convert_to_tensor(targets["masks"])
        return ops.cast(masks if size is None else resize_nearest(masks, size), dtype)
    segment_map = ops.convert_to_tensor(targets["segment_map"])
    segment_map = segment_map if size is None else resize_nearest(segment_map, size)
    return masks_from_segment_map(segment_map, ops.shape(targets["labels"])[1], dtype)


def void_pixels(targets: Targets, size: tuple[Any, Any] | None = None) -> Tensor:
    """Where a batch's images are unlabelled: pixels of no segment, padding among them.

    Args:
        targets: Batch of targets with `segment_map`.
        size: Height and width to which the map is shrunk first, as in `target_masks`.

    Returns:
        `(batch, height, width)` bool.

    Raises:
        ValueError: If the targets have masks instead: what is outside all instances is background, not unlabelled.
    """
    if "segment_map" not in targets:
        raise ValueError(
            "`ignore_void` needs targets with a `segment_map`, where pixels of no segment are unlabelled. "
            f"Received: keys {sorted(targets)}. Turn it off for datasets of overlapping instances."
        )
    segment_map = ops.convert_to_tensor(targets["segment_map"])
    return (segment_map if size is None else resize_nearest(segment_map, size)) == VOID


def pad_targets(targets: Targets, mask_size: tuple[Any, Any]) -> Targets:
    """Extends targets with background to the padded image that the mask logits cover.

    The model pads images to a multiple of its divisor, and its mask logits cover the padded image at stride 4. Where
    four times an axis of the logits exceeds the target's by four pixels or more, the target is padded to it at the
    bottom or right. Otherwise the target's own size is the one to compare at: the image was not padded, or by fewer
    than four pixels, which cannot be told from the logits. Targets exactly once or twice as large as the logits in both
    axes are taken as they are too: those logits have another stride. A caller that knows the padded size pads the
    targets itself, and nothing is left to do here.

    Args:
        targets: Batch of targets with `segment_map` or `masks`.
        mask_size: Height and width of the mask logits.

    Returns:
        Targets of the size at which the losses compare.

    Raises:
        ValueError: If the targets hold neither masks nor a segment map, or are larger than the logits' extent.
    """
    key, value = truth_key(targets)
    truth = ops.convert_to_tensor(targets[key])
    size = ops.shape(truth)[-2:]
    _check_size(size, mask_size)
    return {**targets, key: pad_bottom_right(truth, _padded_size(size, mask_size), value)}


def truth_key(targets: Mapping[str, Any]) -> tuple[str, int]:
    """Whether targets have `masks` or a `segment_map`, and what a pixel of no segment is there.

    Raises:
        ValueError: If they hold neither.
    """
    key, fill = ("masks", 0) if "masks" in targets else ("segment_map", VOID)
    if key not in targets:
        raise ValueError(f"`targets` must have 'segment_map' or 'masks'. Received: keys {sorted(targets)}")
    return key, fill


def pad_bottom_right(x: Tensor, size: tuple[Any, Any], value: Any = 0) -> Tensor:
    """Grows the last two axes to `size` with a constant; an axis that is already as large stays as it is.

    Args:
        x: `(..., height, width)`.
        size: Height and width; integers or scalar int32 tensors.
        value: Constant of the new pixels.

    Returns:
        `(..., max(height, size[0]), max(width, size[1]))` in the dtype of `x`.
    """
    lengths = zip(ops.shape(x)[-2:], size, strict=True)
    amounts = [max(new - old, 0) if _are_static(old, new) else ops.maximum(new - old, 0) for old, new in lengths]
    if _are_static(*amounts) and not any(amounts):
        return x
    return ops.pad(x, [[0, 0]] * (len(x.shape) - 2) + [[0, amount] for amount in amounts], constant_values=value)


def _padded_size(size: tuple[Any, Any], mask_size: tuple[Any, Any]) -> list[Any]:
    """Height and width of the padded image, as far as they can be told; see `pad_targets`."""
    pairs = list(zip(size, mask_size, strict=True))
    if _are_static(*size, *mask_size):
        if any(all(old == stride * mask for old, mask in pairs) for stride in (1, 2)):
            return list(size)
        return [MASK_STRIDE * mask if MASK_STRIDE * (mask - 1) >= old else old for old, mask in pairs]
    height, width = pairs
    is_exact = [ops.logical_and(height[0] == k * height[1], width[0] == k * width[1]) for k in (1, 2)]
    padded = [ops.where(MASK_STRIDE * (mask - 1) >= old, MASK_STRIDE * mask, old) for old, mask in pairs]
    return [ops.where(ops.logical_or(*is_exact), old, new) for old, new in zip(size, padded, strict=True)]


def _check_size(size: tuple[Any, Any], mask_size: tuple[Any, Any]) -> None:
    """Refuses targets that reach beyond the padded image, as those at an image's original size do."""
    if not _are_static(*size, *mask_size):
        return
    is_multiple = all(old % mask == 0 for old, mask in zip(size, mask_size, strict=True))
    if not is_multiple and any(old > MASK_STRIDE * mask for old, mask in zip(size, mask_size, strict=True)):
        raise ValueError(
            f"Targets must not be larger than the padded image, which is {MASK_STRIDE} times the mask logits. "
            f"Received: targets of {tuple(size)} and mask logits of {tuple(mask_size)} pixels. "
            "Resize and crop the targets like the images."
        )


def _are_static(*lengths: Any) -> bool:
    return all(isinstance(length, int) for length in lengths)
