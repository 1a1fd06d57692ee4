"""Weights and border of the bicubic resize."""

from __future__ import annotations

import numpy as np
import pytest

from kmaskformer.ops.bicubic import bicubic_matrix, resize_bicubic


def matrix_by_pixel(old: int, new: int) -> np.ndarray:
    """Float64 weights by the polynomials that are usually written down, one new pixel after the other."""
    matrix = np.zeros((new, old))
    for i in range(new):
        center = (i + 0.5) * old / new - 0.5
        left = int(np.floor(center))
        for pixel in range(left - 1, left + 3):
            t = abs(center - pixel)
            near, far = 1.25 * t**3 - 2.25 * t**2 + 1, -0.75 * t**3 + 3.75 * t**2 - 6 * t + 3
            matrix[i, min(max(pixel, 0), old - 1)] += near if t <= 1 else far
    return matrix


@pytest.mark.parametrize(("old", "new"), [(7, 16), (7, 13), (16, 7), (2, 5), (1, 4), (5, 1), (56, 160)])
def test_weights_equal_the_formula(old, new):
    matrix = np.asarray(bicubic_matrix(old, new))
    np.testing.assert_allclose(matrix, matrix_by_pixel(old, new), atol=2e-5)
    np.testing.assert_allclose(matrix.sum(-1), 1.0, atol=1e-5)


def test_weights_of_a_doubling():
    """Distances 1.25, 0.25, 0.75 and 1.75 for every inner pixel; a linear kernel or a constant of -0.5 has others."""
    row = np.asarray(bicubic_matrix(6, 12))[5]
    np.testing.assert_allclose(row, [0, -0.10546875, 0.87890625, 0.26171875, -0.03515625, 0], atol=1e-6)
    first = np.asarray(bicubic_matrix(6, 12))[0]
    np.testing.assert_allclose(first, [1.10546875, -0.10546875, 0, 0, 0, 0], atol=1e-6)


def test_same_size_is_the_identity(rng):
    for size in (1, 2, 7, 56, 96):
        np.testing.assert_array_equal(bicubic_matrix(size, size), np.eye(size))
    x = rng.standard_normal((3, 5, 8)).astype("float32")
    assert resize_bicubic(x, (5, 8)) is x


def test_rows_and_columns_are_not_confused(rng):
    x = rng.standard_normal((2, 3, 5, 7)).astype("float32")
    expected = matrix_by_pixel(5, 9) @ x.astype("float64") @ matrix_by_pixel(7, 4).T
    np.testing.assert_allclose(resize_bicubic(x, (9, 4)), expected, atol=1e-5)


def test_size_as_tensors_in_a_graph(rng):
    tf = pytest.importorskip("tensorflow")
    x = rng.standard_normal((2, 5, 7)).astype("float32")

    @tf.function(input_signature=[tf.TensorSpec((2,), tf.int32)])
    def resize(size):
        return resize_bicubic(x, (size[0], size[1]))

    for size in [(11, 3), (5, 7)]:
        np.testing.assert_allclose(resize(size), resize_bicubic(x, size), atol=1e-6)


@pytest.mark.parity
@pytest.mark.parametrize("size", [(9, 4), (20, 28), (5, 7), (1, 1), (13, 31)])
def test_equals_pytorch(rng, size):
    torch = pytest.importorskip("torch")
    x = rng.standard_normal((1, 3, 5, 7)).astype("float32")
    expected = torch.nn.functional.interpolate(torch.tensor(x), size, mode="bicubic", align_corners=False)
    np.testing.assert_allclose(resize_bicubic(x, size), expected.numpy(), atol=1e-5)
