"""Our writer of `.weights.h5` against Keras' own."""

import shutil

import h5py
import keras
import numpy as np
import pytest

from kmaskformer.weights_file import save_weights


def content(path):
    """Arrays and attributes of everything in a file, by name."""
    found = {}
    with h5py.File(path) as file:
        file.visititems(
            lambda name, item: found.update(
                {name: (item[()].tobytes() if isinstance(item, h5py.Dataset) else None, sorted(item.attrs.items()))}
            )
        )
    return found


def small_model(dtype="float32", compiled=False):
    keras.utils.set_random_seed(1)
    layers = [keras.layers.Conv2D(4, 3, dtype=dtype), keras.layers.BatchNormalization(dtype=dtype)]
    model = keras.Sequential([keras.Input((8, 8, 3)), *layers, keras.layers.Dropout(0.5), keras.layers.Dense(2)])
    if compiled:
        model.compile(optimizer=keras.optimizers.AdamW(), loss="mse")
        model.fit(np.ones((2, 8, 8, 3)), np.ones((2, 6, 6, 2)), verbose=0)
    return model


@pytest.mark.parametrize(("dtype", "compiled"), [("float32", False), ("float32", True), ("bfloat16", False)])
def test_the_same_file_as_keras_writes(tmp_path, dtype, compiled):
    model = small_model(dtype, compiled)
    save_weights(model, tmp_path / "ours.weights.h5")
    if compiled:
        assert model.optimizer.built
        model.optimizer = None
    model.save_weights(tmp_path / "keras.weights.h5")
    ours = content(tmp_path / "ours.weights.h5")
    assert ours == content(tmp_path / "keras.weights.h5")
    assert sum(value is not None for value, _ in ours.values()) == len(model.weights)


def test_a_full_disk(tmp_path, monkeypatch):
    model = small_model()
    needed = 4 * model.count_params() + 4096 * (len(model.weights) + 1)
    for free in (needed - 1, needed):
        usage = shutil.disk_usage(tmp_path)._replace(free=free)
        monkeypatch.setattr("kmaskformer.weights_file.shutil.disk_usage", lambda path, usage=usage: usage)
        if free < needed:
            with pytest.raises(OSError, match=rf"the file may take {needed} bytes, and the disk has {free} left.*h5"):
                save_weights(model, tmp_path / "a.weights.h5")
            assert not list(tmp_path.iterdir())
    save_weights(model, tmp_path / "a.weights.h5")
    assert list(tmp_path.iterdir())


def test_a_file_of_many_small_weights_takes_no_more_than_is_asked_for(tmp_path, monkeypatch):
    """On a disk with room for the numbers alone, HDF5 would end the process."""
    model = keras.Sequential([keras.Input((1,)), *(keras.layers.Dense(1) for _ in range(50))])
    asked = 4 * model.count_params() + 4096 * (len(model.weights) + 1)
    save_weights(model, tmp_path / "a.weights.h5")
    size = (tmp_path / "a.weights.h5").stat().st_size
    assert 100 * 4 * model.count_params() < size <= asked
    usage = shutil.disk_usage(tmp_path)._replace(free=size // 2)
    monkeypatch.setattr("kmaskformer.weights_file.shutil.disk_usage", lambda path: usage)
    with pytest.raises(OSError, match=rf"the disk has {size // 2} left"):
        save_weights(model, tmp_path / "b.weights.h5")


def test_keras_reads_it(tmp_path):
    model, other = small_model(), small_model()
    for weight in other.weights:
        weight.assign(keras.ops.zeros_like(weight))
    save_weights(model, tmp_path / "a.weights.h5")
    other.load_weights(tmp_path / "a.weights.h5")
    for one, two in zip(model.weights, other.weights, strict=True):
        np.testing.assert_array_equal(one, two)


def test_what_cannot_be_written(tmp_path):
    with pytest.raises(ValueError, match="no weights yet"):
        save_weights(keras.Sequential([keras.layers.Dense(2)]), tmp_path / "a.weights.h5")
    with pytest.raises(ValueError, match=r"must end in \.weights\.h5"):
        save_weights(small_model(), tmp_path / "a.h5")
    assert not list(tmp_path.iterdir())
