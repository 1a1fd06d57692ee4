"""Resizing over the last two axes, with the sampling positions of PyTorch's `interpolate`.

Masks are `(batch, segments, height, width)` in this package, and nearest sampling must pick the same pixels as the
reference does, so `keras.ops.image.resize` serves neither.
"""

from __future__ import annotations

from typing import Any

from keras import ops

Tensor = Any


def resize_bilinear(x: Tensor, size: tuple[Any, Any]) -> Tensor:
    """Bilinear resize with half-pixel centres, without antialiasing (`align_corners=False` in PyTorch).

    Written as two matrix products, `rows @ x @ columnsᵀ`: they and their gradients use all cores and fuse well, while
    TensorFlow's own gradient of a bilinear resize runs on one CPU thread. On a GPU the products follow the precision
    that is set for matrix products (TF32 by default on recent ones).

    Args:
        x: `(..., height, width)` floating point; at least two axes.
        size: New height and width; integers or scalar int32 tensors.

    Returns:
        `(..., *size)` in the dtype of `x`.
    """
    shape = ops.shape(x)
    rows = interpolation_matrix(shape[-2], size[0], x.dtype)
    columns = interpolation_matrix(shape[-1], size[1], x.dtype)
    return multiply_both_sides(x, rows, columns)


def resize_nearest(x: Tensor, size: tuple[Any, Any]) -> Tensor:
    """Nearest resize that takes pixel `floor(i · old / new)`, so that 0..7 becomes 0 2 4 6.

    PyTorch samples like this; TensorFlow and Keras would take 1 3 5 7.

    Args:
        x: `(..., height, width)`, any dtype.
        size: New height and width; integers or scalar int32 tensors.

    Returns:
        `(..., *size)` in the dtype of `x`.
    """
    shape = ops.shape(x)
    x = ops.take(x, _nearest_positions(shape[-2], size[0]), axis=-2)
    return ops.take(x, _nearest_positions(shape[-1], size[1]), axis=-1)


def interpolation_matrix(old_size: Any, new_size: Any, dtype: Any = "float32") -> Tensor:
    """Weights of the old pixels in the new ones, `(new_size, old_size)`; each row sums to 1.

    A new pixel's centre lies at `(i + 0.5) · old / new - 0.5`, moved into the old range; the two old pixels beside it
    have weights one minus their distance.
    """
    centers = _centers(old_size, new_size)
    distances = ops.abs(centers[:, None] - ops.cast(ops.arange(old_size), "float32")[None, :])
    return ops.cast(ops.maximum(1.0 - distances, 0.0), dtype)


def interpolate_rows(x: Tensor, new_size: Any) -> Tensor:
    """`interpolation_matrix(len(x), new_size) @ x`, without the matrix: `(old, n)` becomes `(new_size, n)`."""
    centers = _centers(ops.shape(x)[0], new_size)
    lower = ops.floor(centers)
    weights = (centers - lower)[:, None]
    lower = ops.cast(lower, "int32")
    upper = ops.minimum(lower + 1, ops.shape(x)[0] - 1)
    return (1.0 - weights) * ops.take(x, lower, axis=0) + weights * ops.take(x, upper, axis=0)


def _centers(old_size: Any, new_size: Any) -> Tensor:
    """Where the new pixels' centres lie among the old pixels, `(new_size,)` float32."""
    scale = ops.cast(old_size, "float32") / ops.cast(new_size, "float32")
    centers = (ops.cast(ops.arange(new_size), "float32") + 0.5) * scale - 0.5
    return ops.clip(centers, 0.0, ops.cast(old_size, "float32") - 1.0)


def multiply_both_sides(x: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """`rows @ x @ columnsᵀ` over the last two axes: `(..., h, w)` becomes `(..., len(rows), len(columns))`.

    With the matrices of `interpolation_matrix` this resizes; with their transposes it is the gradient of the resize.
    """
    leading, (height, width) = ops.shape(x)[:-2], ops.shape(x)[-2:]
    new_height, new_width = ops.shape(rows)[0], ops.shape(columns)[0]
    x = ops.matmul(ops.reshape(x, (-1, width)), ops.transpose(columns))
    x = ops.matmul(rows, ops.reshape(x, (-1, height, new_width)))
    return ops.reshape(x, (*leading, new_height, new_width))


def _nearest_positions(old_size: Any, new_size: Any) -> Tensor:
    """Index of the old pixel that each new pixel takes, `(new_size,)` int32; float32 arithmetic, as in PyTorch."""
    scale = ops.cast(old_size, "float32") / ops.cast(new_size, "float32")
    positions = ops.cast(ops.floor(ops.cast(ops.arange(new_size), "float32") * scale), "int32")
    return ops.minimum(positions, old_size - 1)
