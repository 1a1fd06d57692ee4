"""Checks that every backbone is put through, and the formula behind the golden outputs."""

from __future__ import annotations

import json
import re
import zlib

import keras
import numpy as np
import pytest

PIXEL_MEAN = np.array([123.675, 116.280, 103.530], "float32")
PIXEL_STD = np.array([58.395, 57.120, 57.375], "float32")
REFERENCE_LEAF = {
    "kernel": "weight",
    "gamma": "weight",
    "beta": "bias",
    "scale": "weight",
    "offset": "bias",
    "mean": "running_mean",
    "variance": "running_var",
}
JAX_SCRIPT = """
import json, keras, numpy as np
assert keras.backend.backend() == "jax"
from kmaskformer.backbones.{module} import {cls}
backbone = {cls}.from_config(json.loads({config!r}))
inputs = keras.Input((None, None, 3))
model = keras.Model(inputs, backbone(inputs))
model.load_weights("{folder}/model.weights.h5")
features = model.predict_on_batch(np.load("{folder}/images.npy"))
np.savez("{folder}/features.npz", **{{name: np.asarray(value) for name, value in features.items()}})
"""


@pytest.fixture()
def assert_equal_on_jax(tmp_path, run_on_jax):
    """Runs a backbone on JAX, without TensorFlow, from the same `.weights.h5`, and compares the features."""

    def check(backbone: keras.layers.Layer, images: np.ndarray) -> None:
        inputs = keras.Input((None, None, 3))
        keras.Model(inputs, backbone(inputs)).save_weights(tmp_path / "model.weights.h5")
        np.save(tmp_path / "images.npy", images)
        script = JAX_SCRIPT.format(
            module=type(backbone).__module__.rsplit(".", 1)[1],
            cls=type(backbone).__name__,
            config=json.dumps(backbone.get_config()),
            folder=tmp_path,
        )
        run_on_jax(script)
        actual = np.load(tmp_path / "features.npz")
        for name, value in backbone(images).items():
            value = np.asarray(value)
            np.testing.assert_allclose(actual[name], value, rtol=0, atol=1e-4 * np.abs(value).max())

    return check


@pytest.fixture()
def assert_saves_and_loads(tmp_path):
    """`.keras` round trip of a functional model around a backbone: same features, same weights, same own arguments."""

    def check(backbone: keras.layers.Layer, images: np.ndarray) -> None:
        inputs = keras.Input((None, None, 3))
        keras.Model(inputs, backbone(inputs)).save(tmp_path / "model.keras")
        loaded = keras.models.load_model(tmp_path / "model.keras")
        again = loaded.get_layer(backbone.name)
        assert type(again) is type(backbone)
        assert _arguments(again) == _arguments(backbone)
        assert [v.path for v in again.trainable_variables] == [v.path for v in backbone.trainable_variables]
        for name, value in backbone(images).items():
            np.testing.assert_array_equal(np.asarray(loaded(images)[name]), np.asarray(value))

    return check


@pytest.fixture()
def assert_golden(shared_folder):
    """Gives a backbone the weights of the formula and compares its features with the original's.

    The formula is keyed by the original's parameter names, so it also shows that paths follow these names.
    """

    def check(backbone: keras.layers.Layer, case: str) -> None:
        folder = shared_folder / "golden" / case
        meta = json.loads((folder / "meta.json").read_text())
        arrays = np.load(folder / "arrays.npz")
        _assign_formula_weights(backbone, meta["state_dict"])
        for name, value in backbone(_padded_pair(arrays, meta["padded_pair_shape"])).items():
            value = np.asarray(value).transpose(0, 3, 1, 2)
            assert list(value.shape) == meta["features"][name]["shape"]
            picked = (np.arange(min(2000, value.size)) * 1000003) % value.size
            np.testing.assert_allclose(value.ravel()[picked], arrays[f"pair/{name}_sample"], rtol=0, atol=2e-5)
            np.testing.assert_allclose(np.abs(value).max(), meta["features"][name]["absmax"], rtol=1e-5)

    return check


def _arguments(backbone: keras.layers.Layer) -> dict:
    """The configuration without a wrapped model, whose own has identities of shared objects in it."""
    return {key: value for key, value in backbone.get_config().items() if key != "model"}


def _assign_formula_weights(backbone: keras.layers.Layer, state_dict: list) -> None:
    shapes = {key: shape for key, shape, _ in state_dict if key.startswith("backbone.")}
    shapes = {key: shape for key, shape in shapes.items() if not key.endswith("relative_position_index")}
    backbone.build((None, None, None, 3))
    for variable in backbone.weights:
        *path, leaf = re.sub(r"/(layers|blocks)_", r"/\1/", variable.path).split("/")
        key = ".".join([*path, REFERENCE_LEAF.get(leaf, leaf)])
        value = _formula(key, shapes.pop(key))
        if leaf == "kernel":
            value = value.transpose(2, 3, 1, 0) if value.ndim == 4 else value.T
        variable.assign(value)
    assert not shapes, f"the original has more parameters: {list(shapes)}"


def _formula(key: str, shape: list[int]) -> np.ndarray:
    noise = np.random.RandomState(zlib.crc32(key.encode())).standard_normal(shape).astype("float32")
    leaf = key.rsplit(".", 1)[1]
    if leaf == "relative_position_bias_table":
        return 0.5 * noise
    if leaf == "running_var":
        return 1 + 0.1 * np.abs(noise)
    if leaf != "weight":
        return 0.1 * noise
    if len(shape) > 1:
        return noise * np.float32(1 / np.sqrt(np.prod(shape[1:])))
    return (1 + 0.1 * noise) * (0.5 if re.search(r"\.conv3\.norm\.weight$", key) and ".res" in key else 1)


def _padded_pair(arrays, shape: list[int]) -> np.ndarray:
    """Both images, normalised, then padded with zeros."""
    pair = np.zeros((shape[0], *shape[2:], 3), "float32")
    for index, padded in enumerate(pair):
        image = arrays[f"image{index}"]
        padded[: image.shape[0], : image.shape[1]] = (image - PIXEL_MEAN) / PIXEL_STD
    return pair
