import keras
import numpy as np
import pytest

from kmaskformer.layers.attention import MultiHeadAttention


def make_layer(rng, dim=12, num_heads=3, **options):
    layer = MultiHeadAttention(dim, num_heads, **options)
    layer.build((None, None, dim))
    for variable in layer.trainable_variables:
        variable.assign(rng.standard_normal(variable.shape) * 0.5)
    return layer


def linear(layer, x):
    return x @ np.asarray(layer.kernel, "float64") + np.asarray(layer.bias, "float64")


def attention(layer, query, key, value):
    """Head by head, as the formula says."""
    size = layer.dim // layer.num_heads
    query, key = linear(layer.query_projection, query), linear(layer.key_projection, key)
    value, heads = linear(layer.value_projection, value), []
    for start in range(0, layer.dim, size):
        part = slice(start, start + size)
        scores = query[..., part] @ key[..., part].transpose(0, 2, 1) / np.sqrt(size)
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        heads.append(weights / weights.sum(-1, keepdims=True) @ value[..., part])
    return linear(layer.output_projection, np.concatenate(heads, axis=-1))


def inputs(rng, dim=12):
    return [rng.standard_normal((2, length, dim)).astype("float32") for length in (5, 7, 7)]


def test_equals_the_formula(rng):
    layer, tensors = make_layer(rng), inputs(rng)
    np.testing.assert_allclose(layer(*tensors), attention(layer, *tensors), rtol=1e-4, atol=1e-5)


def test_order_of_the_keys_does_not_matter(rng):
    layer, (query, key, value) = make_layer(rng), inputs(rng)
    order = rng.permutation(7)
    np.testing.assert_allclose(layer(query, key, value), layer(query, key[:, order], value[:, order]), atol=1e-5)


def test_large_scores_do_not_overflow_in_half_precision(rng):
    layer, tensors = make_layer(rng, dtype="mixed_float16"), inputs(rng)
    actual = np.asarray(layer(*(30 * x for x in tensors)), "float32")
    assert np.isfinite(actual).all()


def test_dropout_acts_on_weights_in_training_only(rng):
    layer, tensors = make_layer(rng, dropout=0.5), inputs(rng)
    np.testing.assert_array_equal(layer(*tensors), layer(*tensors, training=False))
    many = [np.tile(x[:1], (400, 1, 1)) for x in tensors]
    draws = np.asarray(layer(*many, training=True))
    assert not np.allclose(draws[0], draws[1])
    # The mean over draws is the value without dropout: survivors are scaled up, and the projection is linear.
    expected = np.asarray(layer(*tensors))[0]
    np.testing.assert_allclose(draws.mean(0), expected, atol=6 * draws.std(0).max() / np.sqrt(400))


def test_starts_as_the_reference():
    """Query, key and value share the Glorot bound of their packed (3d, d) matrix; biases are zero."""
    layer = MultiHeadAttention(256, 8)
    layer.build((None, None, 256))
    bounds = {"query": 6 / 1024, "key": 6 / 1024, "value": 6 / 1024, "output": 6 / 512}
    for name, square in bounds.items():
        projection = getattr(layer, f"{name}_projection")
        kernel = np.asarray(projection.kernel)
        assert 0.999 * np.sqrt(square) < np.abs(kernel).max() <= np.sqrt(square) * 1.000001
        assert kernel.std() == pytest.approx(np.sqrt(square / 3), rel=0.02)
        assert not np.asarray(projection.bias).any()


def test_initial_projections_differ():
    layer = MultiHeadAttention(16, 2)
    layer.build((None, None, 16))
    assert not np.allclose(layer.query_projection.kernel, layer.key_projection.kernel)


def test_any_length(rng):
    layer = make_layer(rng)
    query, memory = keras.Input((None, 12)), keras.Input((None, 12))
    model = keras.Model([query, memory], layer(query, memory, memory))
    for length in (3, 8):
        x, y = rng.standard_normal((1, length, 12)), rng.standard_normal((1, length + 1, 12))
        np.testing.assert_allclose(model([x, y]), attention(layer, x, y, y), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("num_heads", [0, 5])
def test_heads_must_divide_the_channels(num_heads):
    with pytest.raises(ValueError, match=f"`num_heads` must divide `dim`. Received: dim=12, num_heads={num_heads}"):
        MultiHeadAttention(12, num_heads)
