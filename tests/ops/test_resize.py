"""Sampling positions of the two resizes."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

from kmaskformer.ops.resize import (
    interpolate_rows,
    interpolation_matrix,
    multiply_both_sides,
    resize_bilinear,
    resize_nearest,
)


def bilinear_by_pixel(x: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Half-pixel bilinear sampling of an `(h, w)` array, one output pixel after the other."""
    result = np.zeros(size)
    for row, column in np.ndindex(*size):
        y, x_ = (
            min(max((i + 0.5) * old / new - 0.5, 0), old - 1)
            for i, old, new in zip((row, column), x.shape, size, strict=True)
        )
        top, left = int(y), int(x_)
        bottom, right = min(top + 1, x.shape[0] - 1), min(left + 1, x.shape[1] - 1)
        upper = x[top, left] * (1 - x_ + left) + x[top, right] * (x_ - left)
        lower = x[bottom, left] * (1 - x_ + left) + x[bottom, right] * (x_ - left)
        result[row, column] = upper * (1 - y + top) + lower * (y - top)
    return result


@pytest.mark.parametrize("size", [(20, 28), (5, 7), (13, 9), (3, 4), (1, 1)])
def test_bilinear_values(size, rng):
    x = rng.normal(size=(2, 3, 5, 7)).astype(np.float32)
    expected = np.stack([[bilinear_by_pixel(plane, size) for plane in image] for image in x])
    np.testing.assert_allclose(resize_bilinear(x, size), expected, atol=2e-6)


def test_bilinear_agrees_with_tensorflow_including_gradient(rng):
    x = tf.constant(rng.normal(size=(2, 6, 9)), tf.float32)
    weight = tf.constant(rng.normal(size=(2, 24, 31)), tf.float32)
    with tf.GradientTape(persistent=True) as tape:
        tape.watch(x)
        ours = resize_bilinear(x, (24, 31))
        theirs = tf.image.resize(x[..., None], (24, 31), method="bilinear")[..., 0]
        our_sum, their_sum = tf.reduce_sum(ours * weight), tf.reduce_sum(theirs * weight)
    np.testing.assert_allclose(ours, theirs, atol=1e-5)
    np.testing.assert_allclose(tape.gradient(our_sum, x), tape.gradient(their_sum, x), atol=1e-4)


def test_transposed_matrices_are_the_gradient(rng):
    x = tf.constant(rng.normal(size=(3, 4, 6)), tf.float32)
    weight = tf.constant(rng.normal(size=(3, 16, 25)), tf.float32)
    rows, columns = interpolation_matrix(4, 16), interpolation_matrix(6, 25)
    with tf.GradientTape() as tape:
        tape.watch(x)
        total = tf.reduce_sum(resize_bilinear(x, (16, 25)) * weight)
    expected = tape.gradient(total, x)
    ours = multiply_both_sides(weight, tf.transpose(rows), tf.transpose(columns))
    np.testing.assert_allclose(ours, expected, atol=1e-5)


def test_interpolation_weights_of_a_doubling():
    expected = [[1, 0], [0.75, 0.25], [0.25, 0.75], [0, 1]]
    np.testing.assert_allclose(interpolation_matrix(2, 4), expected, atol=1e-7)


@pytest.mark.parametrize(("old", "new"), [(1, 1), (1, 5), (7, 7), (7, 20), (20, 7), (480, 427)])
def test_interpolated_rows_are_those_of_the_matrix(rng, old, new):
    x = rng.normal(size=(old, 3)).astype("float32")
    expected = np.matmul(interpolation_matrix(old, new), x)
    np.testing.assert_allclose(interpolate_rows(x, new), expected, atol=1e-6)


def test_nearest_takes_the_floor():
    x = np.arange(8)[None, None, :].repeat(2, 1)
    np.testing.assert_array_equal(resize_nearest(x, (1, 4)), [[[0, 2, 4, 6]]])
    np.testing.assert_array_equal(resize_nearest(np.arange(3)[:, None], (7, 1))[:, 0], [0, 0, 0, 1, 1, 2, 2])


@pytest.mark.parametrize(("old", "new"), [(121, 31), (131, 33), (96, 24), (10, 7), (5, 12)])
def test_nearest_positions_in_float32(old, new):
    scale = np.float32(old) / np.float32(new)
    expected = np.minimum(np.floor(np.arange(new, dtype=np.float32) * scale).astype(int), old - 1)
    x = np.arange(old)
    np.testing.assert_array_equal(resize_nearest(np.broadcast_to(x, (4, old)), (4, new))[0], expected)
    np.testing.assert_array_equal(resize_nearest(np.broadcast_to(x[:, None], (old, 4)), (new, 4))[:, 0], expected)


@pytest.mark.parametrize("dtype", ["bool", "uint8", "int32"])
def test_nearest_keeps_the_dtype(dtype):
    assert resize_nearest(np.ones((2, 4, 4), dtype), (2, 2)).dtype.name == dtype


def test_bilinear_keeps_the_dtype():
    assert resize_bilinear(tf.ones((2, 4, 4), tf.float16), (8, 8)).dtype == tf.float16


@pytest.mark.parametrize("jit", [False, True])
def test_shapes_known_only_at_run_time(jit, rng):
    spec = [tf.TensorSpec((None, None, None, None), tf.float32), tf.TensorSpec((None, None), tf.float32)]

    @tf.function(input_signature=spec, jit_compile=jit)
    def both(x, like):
        size = (tf.shape(like)[0], tf.shape(like)[1])
        return resize_bilinear(x, size), resize_nearest(x, size)

    for shape, size in [((2, 3, 5, 4), (9, 8)), ((1, 1, 6, 6), (3, 2))]:
        x = rng.normal(size=shape).astype(np.float32)
        bilinear, nearest = both(x, np.zeros(size, np.float32))
        np.testing.assert_allclose(bilinear, resize_bilinear(x, size), atol=1e-6)
        np.testing.assert_array_equal(nearest, resize_nearest(x, size))
