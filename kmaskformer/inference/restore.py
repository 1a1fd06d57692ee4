"""From the model's masks at a quarter of the padded image back to the image's own size.

Two bilinear resizes follow one another: to the padded input size, where the padding is cut off, and from there to
the output size. Both are linear and separable, so that for each axis one small matrix holds the whole chain,
`resize(output, image) @ resize(padded, features)[:image]`, and the masks at the padded size (123 MB for 100 queries
at 640x480) are never made. The result is that of the two steps to rounding (2e-6). All sizes may be tensors, which
`keras.ops.image.resize` does not allow, so one traced graph serves every image size.
"""

from __future__ import annotations

from typing import Any

from keras import ops

from kmaskformer.ops.resize import interpolate_rows, interpolation_matrix, multiply_both_sides

Size = Any
"""`(height, width)`: a pair of integers, a pair of scalar tensors or one tensor of two integers."""


def restore_mask_logits(mask_logits: Any, padded_size: Size, image_size: Size, output_size: Size) -> Any:
    """Mask logits at the output size: resize to the padded input, crop to the image, resize to the output.

    Args:
        mask_logits: `(batch, queries, height/4, width/4)`, over the extent of the padded input.
        padded_size: Size of the input after padding; `model.padded_size(height, width)`.
        image_size: Size of the image that went into the model, the upper left part of the padded input.
        output_size: Size wanted; usually that of the image before any resizing.

    Returns:
        `(batch, queries, *output_size)` float32 logits.
    """
    shape = ops.shape(mask_logits)
    rows = _restoring_matrix(shape[2], padded_size[0], image_size[0], output_size[0])
    columns = _restoring_matrix(shape[3], padded_size[1], image_size[1], output_size[1])
    return multiply_both_sides(ops.cast(mask_logits, "float32"), rows, columns)


def upsample_mask_logits(mask_logits: Any, padded_size: Size) -> Any:
    """Mask logits at the size of the padded input, as semantic inference uses them.

    Args:
        mask_logits: `(batch, queries, height/4, width/4)`.
        padded_size: Size of the input after padding.

    Returns:
        `(batch, queries, *padded_size)` float32 logits.
    """
    return restore_mask_logits(mask_logits, padded_size, padded_size, padded_size)


def restore_class_scores(scores: Any, image_size: Size, output_size: Size) -> Any:
    """Class scores computed at the padded size, cropped to the image and resized to the output.

    Args:
        scores: `(batch, classes, padded height, padded width)`.
        image_size: Size of the image that went into the model.
        output_size: Size wanted.

    Returns:
        `(batch, classes, *output_size)` float32 scores.
    """
    shape = ops.shape(scores)
    return restore_mask_logits(scores, (shape[2], shape[3]), image_size, output_size)


def restore_pixel_logits(logits: Any, image_size: Size, output_size: Size, stride: int = 4) -> Any:
    """Class logits of a per-pixel model at the output size: resize by `stride`, crop to the image, resize.

    Args:
        logits: `(batch, height/stride, width/stride, classes)`.
        image_size: Size of the image that went into the model.
        output_size: Size wanted.
        stride: Input pixels per feature pixel. The reference enlarges by exactly this factor, so beyond a padded
            size that is no multiple of it.

    Returns:
        `(batch, classes, *output_size)` float32 logits.
    """
    logits = ops.transpose(logits, (0, 3, 1, 2))
    shape = ops.shape(logits)
    return restore_mask_logits(logits, (shape[2] * stride, shape[3] * stride), image_size, output_size)


def _restoring_matrix(feature_length: Any, padded_length: Any, image_length: Any, output_length: Any) -> Any:
    """`(output, feature)` weights of one axis: the first resize, cut to the image, then the second."""
    enlarge = interpolation_matrix(feature_length, padded_length)[:image_length]
    # A matrix for the second resize would be as long as the image on both sides.
    return interpolate_rows(enlarge, output_length)
