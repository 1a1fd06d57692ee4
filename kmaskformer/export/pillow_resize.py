"""Pillow's bilinear resize of 8-bit images as TensorFlow operations, equal to it to the last bit.

An export must resize as the `Segmenter` does, which uses Pillow. `tf.image.resize(antialias=True)` has the same filter
but rounds otherwise; a pixel that differs by one level can turn a close decision between two segments.
"""

from __future__ import annotations

import functools

import numpy as np
import tensorflow as tf
from PIL import Image

FIXED_POINT = 2.0**22
"""Pillow's weights are whole multiples of its inverse, and both passes round to 8 bits."""


@functools.cache
def pillow_may_begin_with_columns() -> bool:
    """Whether the installed Pillow shrinks the height first where that saves work, as releases from 13 on do."""
    pixels = (np.arange(40 * 6 * 3).reshape(40, 6, 3) * 37 % 256).astype(np.uint8)
    expected = np.asarray(Image.fromarray(pixels).resize((3, 20), Image.Resampling.BILINEAR))
    rows_first = resize_bilinear_uint8(tf.constant(pixels[None]), tf.constant((20, 3)), may_begin_with_columns=False)
    return not np.array_equal(rows_first[0], expected)


def resize_bilinear_uint8(images: tf.Tensor, size: tf.Tensor, may_begin_with_columns: bool | None = None) -> tf.Tensor:
    """Bilinear resize that averages over the covered pixels when shrinking.

    Args:
        images: `(batch, height, width, channels)`, whole numbers 0..255 of any dtype.
        size: `(2,)` int32, the new height and width.
        may_begin_with_columns: Which release of Pillow to follow; see `pillow_may_begin_with_columns`, the default. As
            both passes round, their order shows in single levels.

    Returns:
        `(batch, *size, channels)` float32 whole numbers 0..255: what `PIL.Image.resize(size, BILINEAR)` gives.
    """
    if may_begin_with_columns is None:
        may_begin_with_columns = pillow_may_begin_with_columns()
    images = tf.cast(images, tf.float32)

    def rows_first() -> tf.Tensor:
        return _resize_axis(_resize_axis(images, size[1], axis=2), size[0], axis=1)

    def columns_first() -> tf.Tensor:
        return _resize_axis(_resize_axis(images, size[0], axis=1), size[1], axis=2)

    if not may_begin_with_columns:
        return rows_first()
    shrinkage = tf.shape(images)[1:3] - size
    return tf.cond(
        (shrinkage[0] > 0) & (shrinkage[0] > 2 * shrinkage[1]),
        columns_first,
        rows_first,
    )


def _resize_axis(images: tf.Tensor, new: tf.Tensor, axis: int) -> tf.Tensor:
    """One pass: a weighted sum over the filter's taps, one tap at a time, in whole numbers that float64 holds."""
    positions, weights = _taps(tf.shape(images)[axis], new)
    shape = [1, -1, 1, 1] if axis == 1 else [1, 1, -1, 1]

    def add_tap(tap: tf.Tensor, total: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        pixels = tf.cast(tf.gather(images, positions[:, tap], axis=axis), tf.float64)
        return tap + 1, total + pixels * tf.reshape(weights[:, tap], shape)

    first = tf.cast(tf.gather(images, positions[:, 0], axis=axis), tf.float64) * tf.reshape(weights[:, 0], shape)
    unknown = tf.TensorShape((None, None, None, images.shape[3]))
    count = tf.shape(positions)[1]
    _, total = tf.while_loop(
        lambda tap, total: tap < count,
        add_tap,
        (tf.constant(1), first),
        shape_invariants=(tf.TensorShape(()), unknown),
        parallel_iterations=1,
    )
    rounded = tf.floor((total + FIXED_POINT / 2) / FIXED_POINT)
    return tf.cast(tf.clip_by_value(rounded, 0.0, 255.0), tf.float32)


def _taps(old: tf.Tensor, new: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Old pixels that each new one is made of, and their fixed-point weights; both `(new, taps)`."""
    length = tf.cast(old, tf.float64)
    scale = length / tf.cast(new, tf.float64)
    support = tf.maximum(scale, 1.0)
    centers = (tf.range(tf.cast(new, tf.float64), dtype=tf.float64) + 0.5) * scale
    first = tf.maximum(tf.floor(centers - support + 0.5), 0.0)
    end = tf.minimum(tf.floor(centers + support + 0.5), length)
    positions = first[:, None] + tf.range(tf.math.ceil(support) * 2.0 + 1.0, dtype=tf.float64)
    weights = tf.maximum(1.0 - tf.abs((positions - centers[:, None] + 0.5) * (1.0 / support)), 0.0)
    weights = tf.where(positions < end[:, None], weights, 0.0)
    weights /= tf.reduce_sum(weights, axis=1, keepdims=True)
    positions = tf.cast(tf.minimum(positions, length - 1.0), tf.int32)
    return positions, tf.floor(weights * FIXED_POINT + 0.5)
