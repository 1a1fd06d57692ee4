from __future__ import annotations

import keras
import numpy as np
import pytest
from keras import ops

from kmaskformer.ops.argmax import max_and_argmax


@pytest.mark.parametrize("axis", [0, 1, -1])
def test_is_numpys_also_among_equals(rng, axis):
    x = rng.integers(-3, 3, (5, 4, 6)).astype("float32")
    largest, index = max_and_argmax(ops.convert_to_tensor(x), axis)
    np.testing.assert_array_equal(largest, x.max(axis))
    np.testing.assert_array_equal(index, x.argmax(axis))
    assert keras.backend.standardize_dtype(index.dtype) == "int32"


def test_negative_zero_is_zero_and_nan_stays_in_range():
    x = ops.convert_to_tensor(np.array([[-0.0, 0.0, -1.0], [0.0, np.nan, 1.0]], "float32"))
    _, index = max_and_argmax(x, 1)
    np.testing.assert_array_equal(index, [0, 2])


def test_length_may_be_unknown():
    tf = pytest.importorskip("tensorflow")
    traced = tf.function(lambda x: max_and_argmax(x, 1), input_signature=[tf.TensorSpec((None, None, 2))])
    largest, index = traced(np.array([[[1, 5], [4, 2], [4, 6]]], "float32"))
    assert largest.numpy().tolist() == [[4, 6]] and index.numpy().tolist() == [[1, 2]]
