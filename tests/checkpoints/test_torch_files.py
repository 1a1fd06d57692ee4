"""PyTorch's files, written by hand; and by PyTorch itself under the marker `parity`."""

from __future__ import annotations

import zipfile

import ml_dtypes
import numpy as np
import pytest

from kmaskformer.checkpoints.errors import CheckpointError
from kmaskformer.checkpoints.reader import read_checkpoint

KINDS = {
    "Double": "float64",
    "Float": "float32",
    "Half": "float16",
    "BFloat16": ml_dtypes.bfloat16,
    "Long": "int64",
    "Int": "int32",
    "Short": "int16",
    "Char": "int8",
    "Byte": "uint8",
    "Bool": "bool",
    "ComplexFloat": "complex64",
}
VALUES = np.arange(12, dtype="float32")
STORED = {"0": VALUES.tobytes()}


@pytest.fixture(params=["zip", "legacy"])
def save(request, tmp_path, written):
    """Writes content and storages, `{key: (elements, bytes)}`, in both layouts."""

    def call(content, storages):
        path = tmp_path / "pytorch_model.bin"
        if request.param == "zip":
            return written.torch_archive(path, content, {key: data for key, (_, data) in storages.items()})
        path.write_bytes(written.legacy_torch(content, storages))
        return path

    return call


def test_element_types(save, written):
    arrays = {kind: np.arange(6).reshape(2, 3).astype(dtype) for kind, dtype in KINDS.items()}
    content = {kind: written.tensor(kind, kind, 6, (2, 3), (3, 1)) for kind in KINDS}
    result = read_checkpoint(save(content, {kind: (6, array.tobytes()) for kind, array in arrays.items()}))
    assert list(result) == list(KINDS)
    for kind, array in arrays.items():
        assert result[kind].dtype == array.dtype
        np.testing.assert_array_equal(result[kind], array)
        assert written.is_view_of_file(result[kind])


def test_views_of_one_storage(save, written):
    content = {
        "whole": written.tensor("0", "Float", 12, (3, 4), (4, 1)),
        "transposed": written.tensor("0", "Float", 12, (4, 3), (1, 4)),
        "part": written.tensor("0", "Float", 12, (2, 2), (4, 1), 5),
        "every third": written.tensor("0", "Float", 12, (4,), (3,), 2),
        "expanded": written.tensor("0", "Float", 12, (5, 2), (0, 1), 1),
        "scalar": written.tensor("0", "Float", 12, (), (), 11),
        "empty": written.tensor("0", "Float", 12, (0, 3), (3, 1)),
    }
    result = read_checkpoint(save(content, {"0": (12, VALUES.tobytes())}))
    whole = VALUES.reshape(3, 4)
    expected = {
        "whole": whole,
        "transposed": whole.T,
        "part": whole[1:3, 1:3],
        "every third": VALUES[2::3],
        "expanded": np.tile(VALUES[1:3], (5, 1)),
        "scalar": VALUES[11],
        "empty": np.zeros((0, 3)),
    }
    np.testing.assert_equal(result, expected)
    assert result["empty"].shape == (0, 3)
    assert np.shares_memory(result["whole"], result["part"])
    assert not result["whole"].flags.writeable


@pytest.mark.parametrize("key", ["model", "state_dict", "model_state", None])
def test_wrapped_state_dicts(key, save, written):
    weights = written.Call(written.Global("collections", "OrderedDict"), ())
    items = written.encode("module.w") + written.encode(written.tensor("0", "Float", 12, (12,), (1,)))
    metadata = {"_metadata": {"": {"version": 1}}}
    state_dict = written.State(written.Raw(written.encode(weights) + b"(" + items + b"u"), metadata)
    result = read_checkpoint(save({key: state_dict, "epoch": 3} if key else state_dict, {"0": (12, VALUES.tobytes())}))
    assert list(result) == ["module.w"]
    np.testing.assert_array_equal(result["module.w"], VALUES)


def test_parameters_and_tensors_with_attributes(save, written):
    tensor = written.tensor("0", "Float", 12, (12,), (1,))
    hooks = written.Call(written.Global("collections", "OrderedDict"), ())
    typed = (tensor.function, written.Global("torch", "Tensor"), tensor.arguments, {"name": "x"})
    with_state = written.Global("torch._utils", "_rebuild_parameter_with_state")
    untyped = ("storage", written.Global("torch.storage", "UntypedStorage"), "0", "cpu", 48)
    with_dtype = (written.Persistent(untyped), 1, (2,), (1,), False, hooks, written.Global("torch", "int64"))
    content = {
        "parameter": written.Call(written.Global("torch._utils", "_rebuild_parameter"), (tensor, True, hooks)),
        "with state": written.Call(with_state, (tensor, True, hooks, {"a": 1})),
        "with attributes": written.Call(written.Global("torch._tensor", "_rebuild_from_type_v2"), typed),
        "v3": written.Call(written.Global("torch._utils", "_rebuild_tensor_v3"), with_dtype),
        "size": written.Call(written.Global("torch", "Size"), ((1, 2),)),
    }
    result = read_checkpoint(save(content, {"0": (12, VALUES.tobytes())}))
    assert list(result) == ["parameter", "with state", "with attributes", "v3"]
    for name in list(result)[:3]:
        np.testing.assert_array_equal(result[name], VALUES)
    np.testing.assert_array_equal(result["v3"], VALUES.view("int64")[1:3])


def test_untyped_storage_in_the_older_layout_counts_bytes(tmp_path, written):
    untyped = ("storage", written.Global("torch.storage", "UntypedStorage"), "0", "cpu", 48, None)
    arguments = (written.Persistent(untyped), 0, (12,), (1,), False, None, written.Global("torch", "float32"))
    content = {"w": written.Call(written.Global("torch._utils", "_rebuild_tensor_v3"), arguments)}
    path = tmp_path / "w.bin"
    path.write_bytes(written.legacy_torch(content, {"0": (48, VALUES.tobytes())}))
    np.testing.assert_array_equal(read_checkpoint(path)["w"], VALUES)


def test_big_endian_files(tmp_path, written):
    swapped = VALUES.astype(">f4").tobytes()
    content = {"w": written.tensor("0", "Float", 12, (12,), (1,))}
    path = written.torch_archive(tmp_path / "zip.pth", content, {"0": swapped}, byteorder=b"big")
    legacy = tmp_path / "legacy.pth"
    legacy.write_bytes(written.legacy_torch(content, {"0": (12, swapped)}, ">"))
    for file in (path, legacy):
        result = read_checkpoint(file)["w"]
        assert result.dtype == np.dtype("float32")
        assert result.dtype.isnative
        np.testing.assert_array_equal(result, VALUES)


def test_compressed_records(tmp_path, written):
    content = {"w": written.tensor("0", "Float", 12, (12,), (1,))}
    path = written.torch_archive(tmp_path / "w.pth", content, STORED, zipfile.ZIP_DEFLATED)
    np.testing.assert_array_equal(read_checkpoint(path)["w"], VALUES)


def test_views_of_storages_in_the_older_layout(tmp_path, written):
    content = {
        "root": written.tensor("0", "Float", 12, (12,), (1,), 0, (None,)),
        "view": written.tensor("0", "Float", 12, (3,), (1,), 1, (("9", 4, 6),)),
    }
    path = tmp_path / "w.pth"
    path.write_bytes(written.legacy_torch(content, {"0": (12, VALUES.tobytes())}))
    result = read_checkpoint(path)
    np.testing.assert_array_equal(result["view"], VALUES[5:8])
    content["view"] = written.tensor("0", "Float", 12, (3,), (1,), 1, (("9", 13, 6),))
    path.write_bytes(written.legacy_torch(content, {"0": (12, VALUES.tobytes())}))
    with pytest.raises(CheckpointError, match="a view of storage '0' that begins outside it"):
        read_checkpoint(path)


def test_views_that_leave_their_storage(save, written):
    for shape, strides, offset, found in [
        ((3, 5), (5, 1), 0, "15 elements of float32 are needed, 12 are stored"),
        ((12,), (1,), 1, "13 elements of float32 are needed"),
        ((2,), (2**40,), 0, "elements of float32 are needed"),
        ((10**12, 10**12), (10**12, 1), 0, "elements of float32 are needed"),
        ((2,), (-1,), 5, "the strides is not a short sequence"),
        ((2,), (1,), -1, "the offset is not a short sequence"),
        ((2,), (1, 1), 0, "1 sizes, 2 strides"),
        ("ab", (1, 1), 0, "the shape is not a short sequence"),
    ]:
        content = {"w": written.tensor("0", "Float", 12, shape, strides, offset)}
        with pytest.raises(CheckpointError, match=f"expected an array under 'w'.*{found}"):
            read_checkpoint(save(content, {"0": (12, VALUES.tobytes())}))


def test_expanding_without_bound(save, written):
    content = {"w": written.tensor("0", "Float", 12, (2**20, 2**20), (0, 0))}
    with pytest.raises(CheckpointError, match="contents of 4398046511104 bytes in a file of"):
        read_checkpoint(save(content, {"0": (12, VALUES.tobytes())}))


def test_malformed_tensors(save, written):
    tensor = written.tensor("0", "Float", 12, (12,), (1,))
    storage, rebuild = tensor.arguments[0], tensor.function
    module = written.Persistent(("module", "cls", "file", "source"))
    nameless = written.Persistent(("storage", "Float", "0", "cpu", 12))
    parameter = written.Global("torch._utils", "_rebuild_parameter")
    typed = written.Global("torch._tensor", "_rebuild_from_type_v2")
    v3 = written.Global("torch._utils", "_rebuild_tensor_v3")
    for value, found in [
        (written.Call(rebuild, ("x", 0, (1,), (1,), False, None)), "a tensor without a storage"),
        (written.Call(v3, ("x", 0, (1,), (1,), 0, None, None)), "a tensor without a dtype"),
        (written.Call(written.Global("torch", "Size"), ([1] * 65,)), "a size with 65 axes"),
        (
            written.Call(v3, ("x", 0, (1,), (1,), 0, None, written.Global("torch", "int8"))),
            "a tensor without a storage",
        ),
        (written.Call(rebuild, (storage, 0, (1,), (1,), False, None, {"conj": True})), "delayed conjugation"),
        (written.Call(rebuild, (storage,)), "TypeError"),
        (written.Call(parameter, (1,)), "a parameter without a tensor"),
        (written.Call(typed, (parameter, None, (), None)), "a tensor without a rebuild function"),
        (module, "a persistent id of 'module', not of a storage"),
        (written.Persistent("x"), "a persistent id of 'str'"),
        (nameless, "a persistent id without a storage class"),
        (written.Persistent(("storage", written.Global("torch", "FloatStorage"), 3, "cpu", 12)), "without key or size"),
    ]:
        with pytest.raises(CheckpointError) as caught:
            read_checkpoint(save({"w": value}, {"0": (12, VALUES.tobytes())}))
        assert found in str(caught.value)


def test_hostile_pickles_in_both_layouts(save, written):
    for name in ("os.system", "torch.load", "torch.storage._load_from_bytes", "torch._utils._rebuild_qtensor"):
        module, _, function = name.rpartition(".")
        call = written.Call(written.Global(module, function), ("touch trace",))
        with pytest.raises(CheckpointError, match=f"asks for `{name}`"):
            read_checkpoint(save({"w": call}, {}))


def test_hostile_pickles_around_the_older_layout(tmp_path, written):
    path = tmp_path / "w.pth"
    good = written.legacy_torch({}, {})
    hostile = written.pickled(written.Call(written.Global("os", "system"), ("true",)))
    path.write_bytes(good[: good.index(b".") + 1] + hostile)
    with pytest.raises(CheckpointError, match=r"asks for `os\.system`"):
        read_checkpoint(path)
    keys = written.pickled([])
    path.write_bytes(good.removesuffix(keys) + hostile)
    with pytest.raises(CheckpointError, match=r"asks for `os\.system`"):
        read_checkpoint(path)


def test_archives_that_lie(tmp_path, written):
    def save(storages=STORED, /, **records):
        content = {"w": written.tensor("0", "Float", 12, (12,), (1,))}
        return written.torch_archive(tmp_path / "w.pth", content, storages, **records)

    cases = [
        (lambda: save({}), "expected a record 'archive/data/0'"),
        (lambda: save({"0": VALUES.tobytes()[:-4]}), "storage '0' has 44 bytes, not 12 of float32"),
        (lambda: save({"0": VALUES.tobytes() * 2}), "storage '0' has 96 bytes, not 12 of float32"),
        (lambda: save(byteorder=b"middle"), "expected byte order little or big. Found: b'middle'"),
        (lambda: save(**{"constants.pkl": b""}), "Found: a TorchScript program"),
    ]
    for make, found in cases:
        with pytest.raises(CheckpointError) as caught:
            read_checkpoint(make())
        assert found in str(caught.value)


def test_two_state_dicts_in_one_archive(tmp_path):
    with zipfile.ZipFile(tmp_path / "w.pth", "w") as archive:
        archive.writestr("a/data.pkl", b"")
        archive.writestr("b/data.pkl", b"")
    with pytest.raises(CheckpointError, match=r"expected one PyTorch archive of weights\. Found: 2 of them"):
        read_checkpoint(tmp_path / "w.pth")


def test_truncated_files(save, written, tmp_path):
    content = {"w": written.tensor("0", "Float", 12, (12,), (1,))}
    path = save(content, {"0": (12, VALUES.tobytes())})
    data = path.read_bytes()
    cut = tmp_path / "cut.bin"
    for length in range(1, len(data), 3):
        cut.write_bytes(data[:length])
        with pytest.raises(CheckpointError, match=r"cut\.bin"):
            read_checkpoint(cut)


def test_older_layout_that_lies(tmp_path, written):
    content = {"w": written.tensor("0", "Float", 12, (12,), (1,))}
    stored = {"0": (12, VALUES.tobytes())}
    good = written.legacy_torch(content, stored)
    path = tmp_path / "w.pth"
    for data, found in [
        (good + b"x", "expected the end after the last storage. Found: 1 more bytes"),
        (written.legacy_torch(content, {"0": (11, VALUES.tobytes())}), "48 bytes of storage '0'. Found: 11 elements"),
        (written.legacy_torch(content, {"0": (12, b"")}), "expected 48 bytes of storage '0'. Found: 0 bytes"),
        (written.legacy_torch(content, {"0": (2**62, VALUES.tobytes())}), f"Found: {2**62} elements"),
        (written.legacy_torch(content, {"1": (12, VALUES.tobytes())}), "expected 1 storages. Found: a list of others"),
        (written.legacy_torch(content, stored | {"1": (0, b"")}), "a list of others"),
        (good.replace(written.pickled(1001), written.pickled(1000)), "PyTorch's older layout, protocol 1001"),
    ]:
        path.write_bytes(data)
        with pytest.raises(CheckpointError) as caught:
            read_checkpoint(path)
        assert found in str(caught.value)


@pytest.fixture()
def torch():
    return pytest.importorskip("torch")


@pytest.mark.parity
@pytest.mark.parametrize("new_layout", [True, False])
def test_files_of_pytorch(new_layout, torch, tmp_path, written):
    torch.manual_seed(0)
    base = torch.randn(6, 8)
    names = ["float64", "float32", "float16", "bfloat16", "int64", "int32", "int16", "int8"]
    names += ["uint8", "bool", "uint16", "uint32", "complex64"]
    content = {name: (torch.randn(3, 4) * 40).abs().to(getattr(torch, name)) for name in names}
    content |= {
        "base": base,
        "transposed": base.t(),
        "strided": base[1:5:2, ::3],
        "expanded": base[:1].expand(4, 8),
        "permuted": torch.randn(2, 3, 4, 5).permute(3, 0, 2, 1),
        "channels last": torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last),
        "parameter": torch.nn.Parameter(base),
        "scalar": torch.tensor(3.5),
        "empty": torch.zeros(0, 5),
    }
    content["with attribute"] = torch.ones(3)
    content["with attribute"].note = "x"
    path = tmp_path / "w.pth"
    torch.save({"model": content, "epoch": 3}, path, _use_new_zipfile_serialization=new_layout)
    result = read_checkpoint(path)
    assert list(result) == list(content)
    for name, tensor in content.items():
        tensor = tensor.detach()
        assert str(result[name].dtype) == str(tensor.dtype).removeprefix("torch.")
        assert result[name].shape == tuple(tensor.shape)
        expected = tensor.float().numpy() if name == "bfloat16" else tensor.numpy()
        np.testing.assert_array_equal(result[name].astype(expected.dtype), expected)
        assert name == "empty" or written.is_view_of_file(result[name])
    assert np.shares_memory(result["base"], result["parameter"])


@pytest.mark.parity
@pytest.mark.parametrize("new_layout", [True, False])
def test_state_dict_of_a_pytorch_module(new_layout, torch, tmp_path):
    module = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4), torch.nn.Linear(4, 2))
    path = tmp_path / "w.pth"
    torch.save(module.state_dict(), path, _use_new_zipfile_serialization=new_layout)
    result = read_checkpoint(path)
    assert list(result) == list(module.state_dict())
    for name, tensor in module.state_dict().items():
        np.testing.assert_array_equal(result[name], tensor.numpy())
    torch.save(module, path, _use_new_zipfile_serialization=new_layout)
    with pytest.raises(CheckpointError, match=r"asks for `torch\.nn\.modules\.container\.Sequential`"):
        read_checkpoint(path)


@pytest.mark.parity
def test_files_without_checksums(torch, tmp_path):
    torch.serialization.set_crc32_options(False)
    try:
        torch.save({"w": torch.arange(5.0)}, tmp_path / "w.pth")
    finally:
        torch.serialization.set_crc32_options(True)
    np.testing.assert_array_equal(read_checkpoint(tmp_path / "w.pth")["w"], np.arange(5))


@pytest.mark.parity
@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_tensors_in_a_plain_pickle(protocol, torch, tmp_path):
    import pickle

    content = {"model": {"w": torch.randn(4, 3).t(), "h": torch.ones(2, dtype=torch.bfloat16)}, "__author__": "me"}
    (tmp_path / "w.pkl").write_bytes(pickle.dumps(content, protocol))
    result = read_checkpoint(tmp_path / "w.pkl")
    np.testing.assert_array_equal(result["w"], content["model"]["w"].numpy())
    np.testing.assert_array_equal(result["h"], np.ones(2, ml_dtypes.bfloat16))


@pytest.mark.parity
@pytest.mark.parametrize("shard_size", ["5GB", "1KB"])
@pytest.mark.parametrize("safe", [True, False])
def test_folders_of_the_hub(safe, shard_size, torch, tmp_path):
    hub = pytest.importorskip("huggingface_hub")
    state_dict = {f"layers.{index}.weight": torch.randn(20, 5) for index in range(6)}
    hub.save_torch_state_dict(state_dict, tmp_path, safe_serialization=safe, max_shard_size=shard_size)
    assert len(list(tmp_path.iterdir())) == (1 if shard_size == "5GB" else 4)
    result = read_checkpoint(tmp_path)
    assert sorted(result) == sorted(state_dict)
    for name, tensor in state_dict.items():
        np.testing.assert_array_equal(result[name], tensor.numpy())
