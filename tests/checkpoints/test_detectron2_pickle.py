"""Detectron2's pickles."""

from __future__ import annotations

import pickle
import struct

import numpy as np
import pytest

from kmaskformer.checkpoints.errors import CheckpointError
from kmaskformer.checkpoints.reader import read_checkpoint

WEIGHTS = {"backbone.conv1.weight": np.arange(8, dtype="float32").reshape(2, 4), "backbone.bias": np.ones(3, "float16")}


@pytest.fixture()
def save(tmp_path):
    def call(content, protocol=4):
        path = tmp_path / "model_final_abcdef.pkl"
        path.write_bytes(content if isinstance(content, bytes) else pickle.dumps(content, protocol))
        return path

    return call


def check(arrays):
    assert list(arrays) == list(WEIGHTS)
    for name, array in WEIGHTS.items():
        np.testing.assert_array_equal(arrays[name], array)
        assert arrays[name].dtype == array.dtype


@pytest.mark.parametrize("protocol", range(6))
def test_model_zoo_layout(save, protocol):
    check(read_checkpoint(save({"model": WEIGHTS, "__author__": "third_party", "matching_heuristics": True}, protocol)))


def test_bare_dictionary(save):
    check(read_checkpoint(save(WEIGHTS)))


def test_older_layout(save):
    check(read_checkpoint(save({"blobs": WEIGHTS | {"note": "text"}})))


def test_other_entries_are_left_out(save):
    names = np.array(["a", "b"])
    check(read_checkpoint(save({"model": WEIGHTS | {"epoch": 3, "lr": 0.1, "none": None, "names": names}})))
    check(read_checkpoint(save({"optimizer": {"state": {0: np.ones(3)}}, "model": WEIGHTS, "iteration": 7})))
    check(read_checkpoint(save({"model": {"name": "swin"}, "state_dict": WEIGHTS})))


def test_keys_in_bytes(save):
    check(read_checkpoint(save({b"model": 0, "model": {name.encode(): array for name, array in WEIGHTS.items()}})))


def python2_array(array):
    """An array as Python 2 and NumPy 1 pickled it with protocol 2: its bytes are a string."""
    data = array.tobytes()
    text = b"U" + bytes([len(data)]) + data if len(data) < 256 else b"T" + struct.pack("<i", len(data)) + data
    shape = b"(" + b"".join(b"J" + struct.pack("<i", size) for size in array.shape) + b"t"
    dtype = (
        b"cnumpy\ndtype\n(U\x02"
        + array.dtype.str[1:].encode()
        + b"K\x00K\x01tR(K\x03U\x01<NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
    )
    head = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(K\x00tU\x01btR"
    return head + b"(K\x01" + shape + dtype + b"\x89" + text + b"tb"


@pytest.mark.parametrize("size", [7, 5000])
def test_python_2(save, size, written, rng):
    arrays = {"res2.weight": rng.standard_normal(size).astype("float32"), "bias": rng.standard_normal((size, 2))}
    items = b"".join(b"U" + bytes([len(name)]) + name.encode() + python2_array(array) for name, array in arrays.items())
    content = b"\x80\x02}(U\x05model}(" + items + b"uU\x0a__author__U\x06Caffe2u."
    np.testing.assert_equal(pickle.loads(content, encoding="latin1")["model"], arrays)
    result = read_checkpoint(save(content))
    np.testing.assert_equal(result, arrays)
    if size > 1000:
        assert all(written.is_view_of_file(array) for array in result.values())


def test_tensors_left_by_a_converter(save, written):
    values = np.arange(6, dtype="float32")
    storage = written.Persistent(("storage", written.Global("torch", "FloatStorage"), "1", "cpu", 6, None))
    inner = written.legacy_torch(storage, {"1": (6, values.tobytes())})
    loaded = written.Call(written.Global("torch.storage", "_load_from_bytes"), (inner,))
    hooks = written.Call(written.Global("collections", "OrderedDict"), ())
    rebuild = written.Global("torch._utils", "_rebuild_tensor_v2")
    tensor = written.Call(rebuild, (loaded, 0, (2, 3), (3, 1), False, hooks))
    result = read_checkpoint(save(written.pickled({"model": {"w": tensor}, "matching_heuristics": True})))
    np.testing.assert_array_equal(result["w"], values.reshape(2, 3))


def test_storages_within_a_pickle_are_restricted_too(save, written):
    def save_storage(inner):
        loaded = written.Call(written.Global("torch.storage", "_load_from_bytes"), (inner,))
        return save(written.pickled({"w": loaded}))

    hostile = written.Call(written.Global("os", "system"), ("true",))
    with pytest.raises(CheckpointError, match=r"\(storage within\).*asks for `os\.system`"):
        read_checkpoint(save_storage(written.legacy_torch(hostile, {})))
    nested = written.Call(written.Global("torch.storage", "_load_from_bytes"), (b"",))
    with pytest.raises(CheckpointError, match=r"asks for `torch\.storage\._load_from_bytes`"):
        read_checkpoint(save_storage(written.legacy_torch(nested, {})))
    with pytest.raises(CheckpointError, match="a dict in place of a storage"):
        read_checkpoint(save_storage(written.legacy_torch({}, {})))
    with pytest.raises(CheckpointError, match="a storage without bytes"):
        read_checkpoint(save_storage("text"))


@pytest.mark.parametrize(
    ("content", "found"),
    [
        ([np.ones(2)], "a list"),
        (np.ones(2), "a PickledArray"),
        ({}, "no array under no key"),
        ({"model": {}}, "no array under 'model'"),
        ({"net": WEIGHTS, "epoch": 3}, "arrays nested deeper, in 'net'"),
        ({"model": WEIGHTS | {"head": {"w": np.ones(2)}}}, "arrays nested deeper, in 'head'"),
        ({"model": WEIGHTS | {"head": [np.ones(2)]}}, "arrays nested deeper, in 'head'"),
        ({f"key {index}": index for index in range(20)}, "'key 7' and 12 more"),
    ],
)
def test_other_contents(save, content, found):
    with pytest.raises(CheckpointError, match=r"abcdef\.pkl: expected a dictionary of arrays.*Save") as caught:
        read_checkpoint(save(content))
    assert found in str(caught.value)


def test_bytes_after_the_pickle(save):
    with pytest.raises(CheckpointError, match=r"expected one pickle\. Found: 5 bytes after it"):
        read_checkpoint(save(pickle.dumps(WEIGHTS) + b"extra"))


def test_truncated(save):
    data = pickle.dumps({"model": WEIGHTS})
    with pytest.raises(CheckpointError, match="truncated or corrupt"):
        read_checkpoint(save(data[: len(data) // 2]))
