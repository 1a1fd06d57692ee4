"""Keras' weight files."""

from __future__ import annotations

import io
import zipfile

import h5py
import keras
import ml_dtypes
import numpy as np
import pytest

from kmaskformer.checkpoints.errors import CheckpointError
from kmaskformer.checkpoints.reader import read_checkpoint


@pytest.fixture(scope="module")
def model():
    inputs = keras.Input((3,))
    hidden = keras.layers.Dense(4, name="first")(inputs)
    outputs = keras.layers.Dense(2, name="second", dtype="bfloat16")(hidden)
    model = keras.Model(inputs, outputs)
    model.set_weights([np.arange(weight.size).reshape(weight.shape) for weight in model.get_weights()])
    return model


def check(arrays):
    expected = {
        "layers/dense/vars/0": np.arange(12, dtype="float32").reshape(3, 4),
        "layers/dense/vars/1": np.arange(4, dtype="float32"),
        "layers/dense_1/vars/0": np.arange(8).reshape(4, 2).astype(ml_dtypes.bfloat16),
        "layers/dense_1/vars/1": np.arange(2).astype(ml_dtypes.bfloat16),
    }
    assert sorted(arrays) == sorted(expected)
    for name, array in expected.items():
        assert arrays[name].dtype == array.dtype or name.startswith("layers/dense_1/")
        np.testing.assert_array_equal(arrays[name].astype("float32"), array.astype("float32"))


def test_weights_and_archive(model, tmp_path, written):
    model.save_weights(tmp_path / "model.weights.h5")
    model.save(tmp_path / "model.keras")
    for path in ("model.weights.h5", "model.keras", ""):
        arrays = read_checkpoint(tmp_path / path)
        check(arrays)
        assert all(written.is_view_of_file(array) for array in arrays.values())


def test_sharded_weights(model, tmp_path):
    model.save_weights(tmp_path / "model.weights.json", max_shard_size=60 / 2**30)
    assert len(list(tmp_path.glob("*.h5"))) > 1
    check(read_checkpoint(tmp_path / "model.weights.json"))


@pytest.fixture()
def save(tmp_path):
    def call(fill, **options):
        path = tmp_path / "w.weights.h5"
        with h5py.File(path, "w", **options) as file:
            fill(file)
        return path

    return call


def test_bfloat16(save):
    def fill(file):
        dataset = file.create_dataset("a/vars/0", data=np.arange(6, dtype=ml_dtypes.bfloat16).reshape(2, 3))
        dataset.attrs["dtype"] = "bfloat16"

    result = read_checkpoint(save(fill))["a/vars/0"]
    assert result.dtype == ml_dtypes.bfloat16
    np.testing.assert_array_equal(result.astype("float32"), np.arange(6).reshape(2, 3))


@pytest.mark.parametrize("userblock", [0, 512, 4096])
def test_compressed_swapped_and_scalar(userblock, save, rng):
    values = rng.standard_normal((50, 40)).astype("float32")

    def fill(file):
        file.create_dataset("zipped", data=values, compression="gzip", chunks=(10, 10))
        file["swapped"] = values.astype(">f4")
        file["scalar"] = 2.5
        file.create_dataset("empty", shape=(0, 3))
        file.create_dataset("compact", data=values[0])

    result = read_checkpoint(save(fill, userblock_size=userblock))
    np.testing.assert_array_equal(result["zipped"], values)
    np.testing.assert_array_equal(result["swapped"], values)
    assert result["swapped"].dtype.isnative
    assert result["scalar"] == 2.5
    assert result["empty"].shape == (0, 3)


def set_link(link):
    def fill(file):
        file["a"] = np.ones(2)
        file["group/link"] = link

    return fill


@pytest.mark.parametrize("link", [h5py.ExternalLink("/etc/passwd", "/x"), h5py.SoftLink("/a")])
def test_links_are_refused(link, save):
    with pytest.raises(CheckpointError, match="'group' has a link to another place, 'link'"):
        read_checkpoint(save(set_link(link)))


def test_other_contents_are_refused(save, tmp_path):
    def external(file):
        (tmp_path / "other").write_bytes(bytes(8))
        file.create_dataset("x", (2,), "f4", external=[(tmp_path / "other", 0, 8)])

    def virtual(file):
        layout = h5py.VirtualLayout((2,), "f4")
        layout[:] = h5py.VirtualSource("other.h5", "x", (2,))
        file.create_virtual_dataset("x", layout)

    def text(file):
        file["x"] = ["a", "b"]

    def compound(file):
        file["x"] = np.zeros(2, [("a", "f4"), ("b", "f4")])

    def null(file):
        file["x"] = h5py.Empty("f4")

    for fill, found in [
        (external, "'x' lies in another file"),
        (virtual, "'x' lies in another file"),
        (text, "'x' of type 'object'"),
        (compound, "arrays of numbers"),
        (null, "arrays of numbers"),
        (lambda file: None, "arrays of weights. Found: none"),
    ]:
        with pytest.raises(CheckpointError, match=r"w\.weights\.h5: expected arrays") as caught:
            read_checkpoint(save(fill))
        assert found in str(caught.value)


def test_expanding_without_bound(save):
    for options in ({}, {"chunks": (2**20,), "compression": "gzip"}):
        path = save(lambda file, options=options: file.create_dataset("x", (10**12,), "f4", **options))
        assert path.stat().st_size < 10_000
        with pytest.raises(CheckpointError, match="contents of 4000000000000 bytes in a file of"):
            read_checkpoint(path)


def test_groups_in_a_circle(save):
    def fill(file):
        file["a/x"] = np.ones(2)
        file["a/a"] = file["a"]

    assert list(read_checkpoint(save(fill))) == ["a/x"]


def test_truncated_and_corrupt(model, tmp_path, rng):
    model.save_weights(tmp_path / "model.weights.h5")
    data = (tmp_path / "model.weights.h5").read_bytes()
    cut = tmp_path / "cut.h5"
    for length in (9, 100, 1000, len(data) // 2, len(data) - 1):
        cut.write_bytes(data[:length])
        with pytest.raises(CheckpointError, match=r"cut\.h5.*a complete HDF5 file"):
            read_checkpoint(cut)


def test_archive_with_truncated_weights(tmp_path):
    content = io.BytesIO()
    with h5py.File(content, "w") as file:
        file["x"] = np.ones(100)
    with zipfile.ZipFile(tmp_path / "m.keras", "w") as archive:
        archive.writestr("model.weights.h5", content.getvalue()[:-100])
    with pytest.raises(CheckpointError, match=r"m\.keras \(record model\.weights\.h5\): expected a complete HDF5 file"):
        read_checkpoint(tmp_path / "m.keras")
