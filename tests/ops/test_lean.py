"""The functions that keep their input alone, against TensorFlow's own differentiation of the plain ones."""

import keras
import numpy as np
import pytest

from kmaskformer.ops.lean import gelu, lean_gelu, lean_layer_norm

tf = pytest.importorskip("tensorflow")


def gradients(function, *arrays, dtype="float32", compiled=False):
    """Value, and gradients of a sum with uneven weights."""
    tensors = [tf.cast(tf.constant(array), dtype if i == 0 else "float32") for i, array in enumerate(arrays)]

    def run(*tensors):
        with tf.GradientTape() as tape:
            tape.watch(tensors)
            value = function(*tensors)
            weights = tf.reshape(tf.range(tf.size(value), dtype=tf.float32), tf.shape(value))
            total = tf.reduce_sum(tf.cast(value, tf.float32) * tf.sin(weights))
        return value, *tape.gradient(total, tensors)

    return [np.asarray(x, np.float32) for x in tf.function(run, jit_compile=compiled)(*tensors)]


@pytest.fixture()
def x():
    return 3 * np.random.default_rng(0).standard_normal((2, 5, 6, 16), dtype=np.float32) + 1


def plain_layer_norm(x, scale, offset):
    return keras.ops.layer_normalization(x, scale, offset, axis=-1, epsilon=1e-5)


@pytest.mark.parametrize("compiled", [False, True])
def test_gelu(x, compiled):
    for found, expected in zip(gradients(lean_gelu, x, compiled=compiled), gradients(gelu, x), strict=True):
        np.testing.assert_allclose(found, expected, atol=2e-6)


@pytest.mark.parametrize(
    ("dtype", "compiled", "tolerance"), [("float32", False, 1e-5), ("float32", True, 1e-5), ("bfloat16", False, 2e-2)]
)
def test_layer_norm(x, dtype, compiled, tolerance):
    rng = np.random.default_rng(1)
    scale, offset = rng.standard_normal((2, 16), dtype=np.float32)

    def lean(x, scale, offset):
        return lean_layer_norm(x, scale, offset, 1e-5)

    found = gradients(lean, x, scale, offset, dtype=dtype, compiled=compiled)
    expected = gradients(plain_layer_norm, x, scale, offset)
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, atol=tolerance * np.abs(other).max())


def source(tensor):
    """The tensor whose memory an identity hands on."""
    while tensor.op.type in ("Identity", "IdentityN"):
        tensor = tensor.op.inputs[tensor.value_index]
    return tensor


def kept(function):
    """Tensors of the input's size that the forward pass leaves behind: the value and what the backward pass needs."""
    graph = tf.function(function, autograph=False).get_concrete_function(tf.TensorSpec((64, 32)))
    forward, _ = graph._delayed_rewrite_functions.forward_backward()
    return len({id(source(output)) for output in forward.graph.outputs if output.shape == (64, 32)})


def test_the_backward_pass_keeps_the_input_alone():
    scale, offset = tf.ones(32), tf.zeros(32)
    assert kept(lean_gelu) == 2 < kept(gelu)
    assert (
        kept(lambda x: lean_layer_norm(x, scale, offset, 1e-5))
        == 2
        < kept(lambda x: plain_layer_norm(x, scale, offset))
    )
