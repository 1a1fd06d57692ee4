import numpy as np
import pytest

from kmaskformer.layers.mlp import MLP


def test_linear_layers_with_relu_between_them(rng):
    layer = MLP(5, 3, 3)
    layer.build((None, 4))
    for variable in layer.weights:
        variable.assign(rng.standard_normal(variable.shape))
    x = rng.standard_normal((2, 6, 4)).astype("float32")
    expected = x
    for index, linear in enumerate(layer.linears):
        expected = expected @ np.asarray(linear.kernel) + np.asarray(linear.bias)
        expected = np.maximum(expected, 0) if index < 2 else expected
    actual = np.asarray(layer(x))
    np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-5)
    assert actual.min() < 0  # none after the last


def test_one_layer_goes_straight_to_the_output():
    layer = MLP(99, 3, 1)
    layer.build((None, 4))
    assert [tuple(variable.shape) for variable in layer.weights] == [(4, 3), (3,)]


def test_starts_as_pytorch_linear_layers():
    """U(-b, b) with b = 1 / sqrt(fan_in), biases too."""
    layer = MLP(256, 256, 3)
    layer.build((None, 256))
    assert len(layer.weights) == 6
    for variable in layer.weights:
        values = np.asarray(variable)
        assert 0.95 / 16 < np.abs(values).max() <= 1.000001 / 16
        assert values.std() == pytest.approx(1 / 16 / np.sqrt(3), rel=0.15)


def test_the_bound_follows_each_layers_own_fan_in():
    layer = MLP(400, 16, 2)
    layer.build((None, 100))
    for linear, bound in zip(layer.linears, (0.1, 0.05), strict=True):
        for variable in (linear.kernel, linear.bias):
            assert 0.7 * bound < np.abs(np.asarray(variable)).max() <= bound * 1.000001


def test_needs_a_layer():
    with pytest.raises(ValueError, match=r"`num_layers` must be at least 1. Received: num_layers=0"):
        MLP(4, 4, 0)
