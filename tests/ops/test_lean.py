"""The functions that keep their input alone, against TensorFlow's own differentiation of the plain ones."""

import keras
import numpy as np
import pytest

from kmaskformer.layers.convolution import Convolution
from kmaskformer.layers.dense import linear
from kmaskformer.layers.normalization import GroupNormalization, LayerNormalization, make_norm
from kmaskformer.layers.window_attention import WindowAttention, shifted_window_mask
from kmaskformer.ops.lean import gelu, gelu_with_gradient, lean_dense, lean_norm

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


def channel_mean(x):
    return keras.ops.mean(x, axis=-1, keepdims=True)


@pytest.mark.parametrize("compiled", [False, True])
def test_gelu(x, compiled):
    for found, expected in zip(gradients(gelu_with_gradient, x, compiled=compiled), gradients(gelu, x), strict=True):
        np.testing.assert_allclose(found, expected, atol=2e-6)


@pytest.mark.parametrize(
    ("dtype", "compiled", "tolerance"), [("float32", False, 1e-5), ("float32", True, 1e-5), ("bfloat16", False, 2e-2)]
)
def test_layer_norm(x, dtype, compiled, tolerance):
    rng = np.random.default_rng(1)
    scale, offset = rng.standard_normal((2, 16), dtype=np.float32)

    def lean(x, scale, offset):
        return lean_norm(x, scale, offset, 1e-5, channel_mean)

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
    assert (
        kept(lambda x: lean_norm(x, scale, offset, 1e-5, channel_mean))
        == 2
        < kept(lambda x: plain_layer_norm(x, scale, offset))
    )


def activated(x, scale):
    return gelu_with_gradient(x * scale)


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("has_bias", [False, True])
def test_dense(x, compiled, has_bias):
    """Value, and gradients for the input, the function's own parameter, the kernel and the bias."""
    rng = np.random.default_rng(1)
    scale, kernel, bias = (rng.standard_normal(shape, dtype=np.float32) for shape in (16, (16, 7), 7))

    def lean(x, scale, kernel, *bias):
        return lean_dense(activated, x, [scale], kernel, *(bias or [None]))

    def plain(x, scale, kernel, *bias):
        return keras.ops.matmul(gelu(x * scale), kernel) + (bias[0] if bias else 0)

    arrays = [x, scale, kernel, *([bias] if has_bias else [])]
    found, expected = gradients(lean, *arrays, compiled=compiled), gradients(plain, *arrays)
    assert len(found) == len(arrays) + 1
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5 * np.abs(other).max())


def test_dense_keeps_the_input_alone():
    kernel = tf.ones((32, 8))
    plain = kept(lambda x: keras.ops.matmul(gelu(x), kernel))
    assert kept(lambda x: lean_dense(gelu_with_gradient, x, [], kernel, None)) == 1 < plain


@pytest.mark.parametrize("kind", ["group", "layer"])
@pytest.mark.parametrize("precision", ["float32", "mixed_bfloat16"])
def test_layers_in_training_are_those_of_inference(x, kind, precision):
    """The lean path against Keras' and TensorFlow's own differentiation, weights included."""
    layer = make_norm(kind, "norm", dtype=precision, **({"groups": 4} if kind == "group" else {}))
    assert isinstance(layer, GroupNormalization if kind == "group" else LayerNormalization)
    layer.build(x.shape)
    rng = np.random.default_rng(1)
    for weight in layer.weights:
        weight.assign(rng.standard_normal(weight.shape))
    results = []
    for training in (False, True):
        with tf.GradientTape() as tape:
            inputs = tf.constant(x)
            tape.watch(inputs)
            value = tf.cast(layer(inputs, training=training), "float32")
            total = tf.reduce_sum(value * tf.sin(tf.reshape(tf.range(x.size, dtype="float32"), x.shape)))
        weights = [weight.value for weight in layer.trainable_weights]
        results.append([value, *tape.gradient(total, [inputs, *weights])])
    for one, other in zip(*results, strict=True):
        tolerance = 1e-5 if precision == "float32" else 2e-2
        np.testing.assert_allclose(one, other, atol=tolerance * np.abs(other).max())


@pytest.mark.parametrize("precision", ["float32", "mixed_bfloat16", "mixed_float16"])
@pytest.mark.parametrize("kind", ["dense", "convolution", "lean dense"])
def test_the_gradient_of_a_bias_over_many_pixels(kind, precision):
    """TensorFlow adds it up in half precision, in which a sum of ten thousand numbers no longer grows."""
    rng = np.random.default_rng(0)
    x = tf.constant(rng.standard_normal((2, 96, 96, 8)), "float32")
    upstream = tf.constant(rng.standard_normal((2, 96, 96, 4)) + 0.25, "float32")
    layer = linear(4, 8, "fc", precision) if "dense" in kind else Convolution(4, 3, dtype=precision)
    layer.build(x.shape)

    @tf.function
    def gradient():
        with tf.GradientTape() as tape:
            if kind == "lean dense":
                tensors = [tf.cast(one, layer.compute_dtype) for one in (x, layer.kernel.value, layer.bias.value)]
                outputs = lean_dense(tf.identity, tensors[0], [], *tensors[1:])
            else:
                outputs = layer(x, training=True)
            total = tf.reduce_sum(tf.cast(outputs, "float32") * upstream)
        return tape.gradient(total, layer.bias.value)

    expected = np.asarray(upstream, np.float64).sum(axis=(0, 1, 2))
    np.testing.assert_allclose(gradient(), expected, rtol=1e-5 if precision == "float32" else 5e-3)


@pytest.mark.parametrize("precision", ["float32", "mixed_bfloat16"])
@pytest.mark.parametrize("masked", [False, True])
def test_window_attention_in_training_is_that_of_inference(masked, precision):
    """Value and gradients, where the weights are kept and where they are computed again."""
    layer = WindowAttention(8, num_heads=2, window_size=3, dtype=precision)
    rng = np.random.default_rng(0)
    windows = rng.standard_normal((8, 9, 8), dtype=np.float32)
    layer.build(windows.shape)
    for weight in layer.weights:
        weight.assign(rng.standard_normal(weight.shape))
    mask = shifted_window_mask(6, 6, 3, 1) if masked else None
    results = []
    for training in (False, True):
        with tf.GradientTape() as tape:
            inputs = tf.constant(windows)
            tape.watch(inputs)
            value = tf.cast(layer(inputs, window_mask=mask, training=training), "float32")
            total = tf.reduce_sum(value * tf.sin(tf.reshape(tf.range(windows.size, dtype="float32"), windows.shape)))
        weights = [weight.value for weight in layer.trainable_weights]
        results.append([value, *tape.gradient(total, [inputs, *weights])])
    for one, other in zip(*results, strict=True):
        one, other = (np.asarray(tf.convert_to_tensor(x), np.float32) for x in (one, other))
        np.testing.assert_allclose(one, other, atol=(1e-5 if precision == "float32" else 2e-2) * np.abs(other).max())


def test_window_attention_does_not_keep_its_weights():
    layer = WindowAttention(8, num_heads=2, window_size=3)
    layer.build((None, 9, 8))

    def count(training):
        function = tf.function(lambda x: layer.mix(x, training=training), autograph=False)
        graph = function.get_concrete_function(tf.TensorSpec((5, 9, 24)))
        forward, _ = graph._delayed_rewrite_functions.forward_backward()
        return sum(output.shape == (5, 2, 9, 9) for output in forward.graph.outputs)

    assert count(training=True) == 0 < count(training=False)
