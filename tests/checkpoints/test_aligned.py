"""What TensorFlow takes over without copying, and what that must not change."""

import keras
import numpy as np
import pytest

from kmaskformer.checkpoints.aligned import adopted, aligned_empty, aligned_zeros


@pytest.mark.parametrize("shape", [(), (3, 5), (2, 3, 4, 5)])
def test_shape_type_and_place(shape):
    for array in (aligned_empty(shape), aligned_zeros(shape)):
        assert array.shape == shape and array.dtype == "float32" and array.ctypes.data % 64 == 0
    assert not aligned_zeros(shape).any()


def test_a_variable_holds_the_arrays_memory():
    array, variable = aligned_zeros((64, 64)), keras.Variable(np.ones((64, 64), np.float32))
    variable.assign(adopted(array))
    array[3, 4] = 5
    assert variable.value[3, 4].numpy() == 5


def test_an_update_of_the_variable_goes_into_memory_of_its_own():
    array, variable = aligned_zeros((64, 64)), keras.Variable(np.ones((64, 64), np.float32))
    variable.assign(adopted(array))
    variable.assign_add(np.ones((64, 64), np.float32))
    np.testing.assert_array_equal(keras.ops.convert_to_numpy(variable), np.ones((64, 64)))
    assert not array.any()
