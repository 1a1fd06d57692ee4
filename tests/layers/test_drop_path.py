import keras
import numpy as np
import pytest

from kmaskformer.layers.drop_path import DropPath


def test_drops_whole_samples_and_keeps_the_mean(rng):
    layer = DropPath(0.25, seed=3)
    x = rng.standard_normal((4000, 2, 2, 3)).astype("float32")
    factors = np.asarray(layer(x, training=True)) / x
    per_sample = factors.reshape(4000, -1)
    np.testing.assert_allclose(per_sample, np.broadcast_to(per_sample[:, :1], per_sample.shape), rtol=1e-5)
    np.testing.assert_allclose(np.unique(per_sample.round(4)), [0, 1.3333])
    np.testing.assert_allclose(per_sample.mean(), 1, atol=0.03)


def test_does_nothing_outside_training_or_at_rate_zero(rng):
    x = rng.standard_normal((2, 3)).astype("float32")
    np.testing.assert_array_equal(DropPath(0.5)(x, training=False), x)
    layer = DropPath(0.0)
    np.testing.assert_array_equal(layer(x, training=True), x)
    assert layer.variables == []


def test_a_seed_repeats():
    x = np.ones((64, 1), "float32")
    np.testing.assert_array_equal(DropPath(0.5, seed=1)(x, training=True), DropPath(0.5, seed=1)(x, training=True))


def test_config_round_trip():
    layer = DropPath(0.1, seed=7)
    again = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(layer))
    assert again.get_config() == layer.get_config()


@pytest.mark.parametrize("rate", [-0.1, 1.0])
def test_bad_rate_is_named(rate):
    with pytest.raises(ValueError, match=f"`rate` must be at least 0 and less than 1. Received: rate={rate}"):
        DropPath(rate)
