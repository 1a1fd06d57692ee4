"""A seed repeats initial weights, dropout and whole runs."""

from __future__ import annotations

import keras
import numpy as np
import pytest

from kmaskformer.training.optimizer import AdamW
from kmaskformer.training.seeds import set_seed


def trained_weights(seed: int) -> list[np.ndarray]:
    set_seed(seed)
    model = keras.Sequential(
        [keras.Input((3,)), keras.layers.Dense(6, "tanh"), keras.layers.Dropout(0.5), keras.layers.Dense(1)]
    )
    model.compile(optimizer=AdamW(0.01), loss="mse")
    inputs = np.random.normal(size=(32, 3)).astype("float32")
    model.fit(inputs, inputs[:, :1], batch_size=8, epochs=2, verbose=0)
    return model.get_weights()


def test_a_run_repeats():
    for one, same in zip(trained_weights(11), trained_weights(11), strict=True):
        np.testing.assert_array_equal(one, same)


def test_another_seed_differs():
    set_seed(11)
    first = keras.random.normal((4,)), np.random.random(4)
    set_seed(12)
    second = keras.random.normal((4,)), np.random.random(4)
    for one, other in zip(first, second, strict=True):
        assert not np.array_equal(np.asarray(one), np.asarray(other))


def test_no_seed_draws_one_that_repeats():
    seed = set_seed(None)
    drawn = np.random.random(4)
    assert set_seed(seed) == seed
    np.testing.assert_array_equal(np.random.random(4), drawn)


def test_deterministic_asks_tensorflow_for_deterministic_kernels(monkeypatch):
    tf = pytest.importorskip("tensorflow")
    calls = []
    monkeypatch.setattr(tf.config.experimental, "enable_op_determinism", lambda: calls.append(1))
    set_seed(1, deterministic=True)
    assert calls == ([1] if keras.backend.backend() == "tensorflow" else [])


@pytest.mark.parametrize("seed", [-1, 2**32, 1.5, True])
def test_errors(seed):
    with pytest.raises(ValueError, match=f"`seed` must be an integer in 0..4294967295, or None.*Received: seed={seed}"):
        set_seed(seed)
