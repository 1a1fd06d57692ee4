"""Bicubic resizing over the last two axes, as PyTorch's `interpolate` does it.

`keras.ops.image.resize` takes no tensor as a size, and TensorFlow's bicubic kernel is another one: its constant is -0.5
and weights beyond the border are dropped.
"""

from __future__ import annotations

from typing import Any

from keras import ops

from kmaskformer.ops.resize import multiply_both_sides

Tensor = Any

SHARPNESS = -0.75
"""Slope of the cubic kernel one pixel from its centre."""


def resize_bicubic(x: Tensor, size: tuple[Any, Any]) -> Tensor:
    """Bicubic resize with half-pixel centres, without antialiasing (`align_corners=False` in PyTorch).

    Args:
        x: `(..., height, width)` floating point; at least two axes.
        size: New height and width; integers or scalar int32 tensors.

    Returns:
        `(..., *size)` in the dtype of `x`; `x` itself where `size` is known to be its size.
    """
    height, width = ops.shape(x)[-2:]
    if all(isinstance(side, int) for side in (height, width, *size)) and (height, width) == tuple(size):
        return x
    rows, columns = bicubic_matrix(height, size[0], x.dtype), bicubic_matrix(width, size[1], x.dtype)
    return multiply_both_sides(x, rows, columns)


def bicubic_matrix(old_size: Any, new_size: Any, dtype: Any = "float32") -> Tensor:
    """Weights of the old pixels in the new ones, `(new_size, old_size)`; each row sums to 1.

    A new pixel's centre lies at `(i + 0.5) · old / new - 0.5`; the four old pixels around it have the weights of the
    cubic kernel at their distances. Beyond the border, the pixel at the border is repeated.
    """
    scale = ops.cast(old_size, "float32") / ops.cast(new_size, "float32")
    centers = (ops.cast(ops.arange(new_size), "float32") + 0.5) * scale - 0.5
    first = ops.floor(centers) - 1.0
    old_pixels = ops.cast(ops.arange(old_size), "float32")
    last_pixel = ops.cast(old_size, "float32") - 1.0
    matrix = 0.0
    for tap in range(4):
        weights = _cubic_kernel(ops.abs(centers - (first + tap)))
        pixels = ops.clip(first + tap, 0.0, last_pixel)
        matrix = matrix + ops.where(ops.equal(pixels[:, None], old_pixels[None, :]), weights[:, None], 0.0)
    return ops.cast(matrix, dtype)


def _cubic_kernel(distance: Tensor) -> Tensor:
    """Keys' cubic convolution kernel for distances of 0 to 2 pixels."""
    near = ((SHARPNESS + 2.0) * distance - (SHARPNESS + 3.0)) * distance * distance + 1.0
    far = SHARPNESS * (((distance - 5.0) * distance + 8.0) * distance - 4.0)
    return ops.where(distance <= 1.0, near, far)
