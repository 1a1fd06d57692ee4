"""Cropping of feature maps, with a gradient that costs no more than the crop."""

from __future__ import annotations

from typing import Any

from keras import ops


def crop_bottom_right(x: Any, height: Any, width: Any) -> Any:
    """The upper left part of a feature map.

    TensorFlow differentiates `x[:, :height, :width]` by an operation of its own, also where nothing is cut off; the
    gradient of `slice` is padding, which took a twentieth of its time on a CPU.

    Args:
        x: `(batch, H, W, channels)`.
        height: At most H; a number or an int32 scalar tensor.
        width: At most W, likewise.

    Returns:
        `(batch, height, width, channels)`.
    """
    batch, old_height, old_width, channels = ops.shape(x)
    if isinstance(height, int) and isinstance(width, int) and (height, width) == (old_height, old_width):
        return x
    return ops.slice(x, (0, 0, 0, 0), (batch, height, width, channels))
