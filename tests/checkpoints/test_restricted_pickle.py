"""Arrays out of pickles, and pickles that want something else."""

from __future__ import annotations

import os
import pickle
import subprocess

import ml_dtypes
import numpy as np
import pytest

from kmaskformer.checkpoints.errors import CheckpointError
from kmaskformer.checkpoints.reader import read_checkpoint
from kmaskformer.checkpoints.restricted_pickle import PickledArray

DTYPES = ["float64", "float32", "float16", "int64", "int32", "int16", "int8", "uint8", "uint64", "bool", "complex64"]


@pytest.fixture()
def read(tmp_path):
    def call(content):
        path = tmp_path / "weights.pkl"
        path.write_bytes(content)
        return read_checkpoint(path)

    return call


@pytest.mark.parametrize("protocol", range(6))
def test_arrays_of_every_protocol(protocol, read, rng):
    arrays = {name: (rng.standard_normal((2, 3)) * 50).astype(name) for name in DTYPES}
    arrays |= {
        "fortran": np.asfortranarray(rng.standard_normal((3, 4))),
        "transposed": rng.standard_normal((2, 3, 4)).transpose(1, 2, 0),
        "big": np.arange(3, dtype=">f4"),
        "scalar": np.float32(2.5),
        "zero dimensions": np.array(7),
        "no elements": np.zeros((0, 3), "float32"),
        "one byte big": np.arange(3, dtype=">i1"),
        "bfloat16": np.arange(4, dtype=ml_dtypes.bfloat16),
    }
    result = read(pickle.dumps(arrays, protocol))
    assert list(result) == list(arrays)
    for name, array in arrays.items():
        assert result[name].dtype == array.dtype.newbyteorder("="), name
        assert result[name].dtype.isnative
        assert result[name].shape == array.shape
        np.testing.assert_array_equal(result[name], array)


def test_arrays_are_views_of_the_file(read, rng, written):
    arrays = {"a": rng.standard_normal((100, 100)).astype("float32")}
    for protocol in (3, 4, 5):
        result = read(pickle.dumps(arrays, protocol))["a"]
        assert written.is_view_of_file(result)
        assert not result.flags.writeable


def test_both_names_of_numpy_core(read):
    data = pickle.dumps({"a": np.arange(3.0)}, 2)
    assert b"numpy._core" in data
    np.testing.assert_array_equal(read(data.replace(b"numpy._core", b"numpy.core"))["a"], [0, 1, 2])


class Reduced:
    """Pickles as the call of a function."""

    def __init__(self, function, *arguments):
        self.call = (function, arguments)

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("protocol", [0, 2, 4])
@pytest.mark.parametrize("place", ["alone", "in model", "as key"])
def test_functions_are_refused_and_do_not_run(protocol, place, read, tmp_path):
    trace = tmp_path / "trace"
    for function, arguments, name in [
        (os.system, (f"touch {trace}",), "system"),
        (eval, (f"open({str(trace)!r}, 'w')",), "eval"),
        (exec, (f"open({str(trace)!r}, 'w')",), "exec"),
        (open, (str(trace), "w"), "open"),
        (subprocess.Popen, (["touch", str(trace)],), "Popen"),
        (np.save, (str(trace), [1]), "numpy.save"),
        (np.load, (str(trace), "r", True), "numpy.load"),
        (getattr, ("", "join"), "getattr"),
        (np.ones(2).tofile, (str(trace),), "getattr"),
        (__import__, ("antigravity",), "__import__"),
    ]:
        gadget = Reduced(function, *arguments)
        array = np.ones(2)
        content = {"alone": gadget, "in model": {"model": {"w": array, "x": gadget}}, "as key": {gadget: array}}[place]
        with pytest.raises(CheckpointError, match="asks for") as caught:
            read(pickle.dumps(content, protocol))
        assert name in str(caught.value), str(caught.value)
        assert "Nothing of it ran" in str(caught.value)
    assert not trace.exists()
    pickle.loads(pickle.dumps(Reduced(np.save, str(trace), [1]), protocol))
    assert trace.with_suffix(".npy").exists(), "the gadget would have run"


def test_the_message_names_file_and_remedy(read, tmp_path, written):
    with pytest.raises(CheckpointError) as caught:
        read(written.pickled(written.Call(written.Global("os", "system"), ("true",))))
    assert str(caught.value) == (
        f"{tmp_path / 'weights.pkl'}: expected a pickle that holds only arrays, numbers, strings and plain containers. "
        "Found: it asks for `os.system`. Nothing of it ran. If you trust the file, open it where it was made and save "
        "only its dictionary of weights, for instance `torch.save(model.state_dict(), path)` or safetensors."
    )


@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("builtins", "getattr"),
        ("__builtin__", "eval"),
        ("numpy", "load"),
        ("numpy", "memmap"),
        ("numpy", "fromfile"),
        ("numpy", "core.multiarray._reconstruct"),
        ("numpy.core.multiarray", "fromfile"),
        ("numpy.core.records", "fromfile"),
        ("numpy.f2py.diagnose", "run"),
        ("numpy.testing._private.utils", "runstring"),
        ("numpy.distutils.exec_command", "exec_command"),
        ("numpy.lib.npyio", "load"),
        ("numpy.ma.core", "_mareconstruct"),
        ("numpy", "matrix"),
        ("numpy.random._pickle", "__generator_ctor"),
        ("torch.serialization", "load"),
        ("torch", "load"),
        ("torch.jit", "load"),
        ("torch._utils", "_rebuild_wrapper_subclass"),
        ("torch._utils", "_rebuild_tensor_v2.__globals__"),
        ("torch", "_utils._rebuild_tensor_v2"),
        ("torchvision.models.resnet", "ResNet"),
        ("collections", "defaultdict"),
        ("_codecs", "decode"),
        ("codecs", "open"),
        ("importlib", "import_module"),
        ("operator", "attrgetter"),
        ("functools", "partial"),
        ("pickle", "loads"),
        ("copyreg", "_reconstructor"),
        ("argparse", "Namespace"),
        ("kmaskformer.checkpoints.reader", "read_checkpoint"),
    ],
)
def test_names_off_the_list(module, name, read, written):
    with pytest.raises(CheckpointError) as caught:
        read(written.pickled({"w": written.Global(module, name)}))
    assert f"it asks for `{module}.{name}`" in str(caught.value)


def test_object_arrays_are_refused(read):
    with pytest.raises(CheckpointError, match=r"asks for `numpy\.dtype\('O8'\)"):
        read(pickle.dumps({"a": np.array([{}, []], dtype=object)}))


@pytest.mark.parametrize("dtype", ["V8", [("x", "f4")], "M8[s]", "m8[s]", "f16"])
def test_other_dtypes_are_refused(dtype, read):
    with pytest.raises(CheckpointError, match=r"asks for `numpy\.dtype"):
        read(pickle.dumps({"a": np.zeros(3, dtype)}))


def reconstruct(written, kind, state, core="numpy.core.multiarray"):
    array = written.Call(written.Global(core, "_reconstruct"), (kind, (0,), b"b"))
    return {"a": written.State(array, state)}


def dtype_of(written, code, order="<", state=None):
    dtype = written.Call(written.Global("numpy", "dtype"), (code, False, True))
    return written.State(dtype, state or (3, order, None, None, None, -1, -1, 0))


def test_odd_subtypes_are_refused(read, written):
    ndarray, float32 = written.Global("numpy", "ndarray"), dtype_of(written, "f4")
    good = reconstruct(written, ndarray, (1, (2,), float32, False, bytes(8)))
    np.testing.assert_array_equal(read(written.pickled(good))["a"], [0, 0])
    for kind in (written.Global("numpy", "dtype"), written.Global("collections", "OrderedDict")):
        with pytest.raises(CheckpointError, match=r"an array of the class (numpy\.dtype|collections\.OrderedDict)"):
            read(written.pickled(reconstruct(written, kind, (1, (2,), float32, False, bytes(8)))))


def test_dtypes_with_fields_in_their_state_are_refused(read, written):
    fields = (3, "|", None, ("x",), {"x": ()}, 8, 1, 0)
    state = (1, (1,), dtype_of(written, "f8", state=fields), False, bytes(8))
    with pytest.raises(CheckpointError, match=r"numpy\.dtype with fields"):
        read(written.pickled(reconstruct(written, written.Global("numpy", "ndarray"), state)))


def test_encoding_to_anything_but_latin1_is_refused(read, written):
    encode = written.Global("_codecs", "encode")
    for arguments in (("a", "rot13"), ("a", "zlib"), (b"a", "hex"), (b"a", "latin1")):
        with pytest.raises(CheckpointError, match=r"_codecs\.encode to anything but latin1"):
            read(written.pickled({"a": written.Call(encode, arguments)}))


def test_encoding_one_string_again_and_again_is_refused(read, written):
    encode, raw = written.encode, written.Raw
    text = encode("x" * 100_000) + b"q\x00" + encode("latin1") + b"q\x01" + b"00"
    again = [raw(encode(written.Global("_codecs", "encode")) + b"h\x00h\x01\x86R") for _ in range(3)]
    with pytest.raises(CheckpointError, match="more copied items than the file has bytes"):
        read(b"\x80\x02" + text + encode(again) + b".")


@pytest.mark.parametrize("name", [("collections", "OrderedDict"), ("builtins", "set")])
def test_copying_one_list_again_and_again_is_refused(read, written, name):
    encode, raw = written.encode, written.Raw
    items = [(number % 200, 1) for number in range(5000)] if name[1] == "OrderedDict" else [1] * 5000
    memo = encode(items) + b"q\x000"
    again = [raw(encode(written.Global(*name)) + b"h\x00\x85R") for _ in range(300)]
    with pytest.raises(CheckpointError, match="more copied items than the file has bytes"):
        read(b"\x80\x02" + memo + encode(again) + b".")


@pytest.mark.parametrize(
    ("shape", "data", "found"),
    [
        ((2**40, 2**40), bytes(8), "elements of float32 are needed, 2 are stored"),
        ((10**9,), bytes(8), "1000000000 elements of float32 are needed, 2 are stored"),
        ((3,), bytes(8), "3 elements of float32 are needed, 2 are stored"),
        ((1,), bytes(8), r"an array of shape \(1,\) and dtype float32 with 8 bytes of data"),
        ((-2,), bytes(8), "the shape is not a short sequence of non-negative integers"),
        ((True, 2), bytes(8), "the shape is not a short sequence"),
        ((2**70, 0), b"", "the shape is not a short sequence"),
        ((1,) * 40, bytes(4), "the shape is not a short sequence"),
        (("2",), bytes(8), "the shape is not a short sequence"),
        ([2], bytes(8), "an array without dtype and shape"),
        ((2,), [1, 2], "an array whose data is of type list, not bytes"),
        ((2,), None, "an array whose data is of type NoneType"),
        ((2,), "€" * 8, "codec can't encode"),
    ],
)
def test_arrays_that_do_not_fit_their_data(shape, data, found, read, written):
    state = (1, shape, dtype_of(written, "f4"), False, data)
    content = reconstruct(written, written.Global("numpy", "ndarray"), state)
    with pytest.raises(CheckpointError, match=f"weights.pkl: expected an array under 'a'. Found: .*{found}"):
        read(written.pickled(content))


def test_arrays_without_state(read, written):
    arguments = (written.Global("numpy", "ndarray"), (0,), b"b")
    array = written.Call(written.Global("numpy._core.multiarray", "_reconstruct"), arguments)
    with pytest.raises(CheckpointError, match="an array without dtype and shape"):
        read(written.pickled({"a": array}))
    with pytest.raises(ValueError, match="not enough values"):
        PickledArray().set_state((1,))


def test_one_array_under_many_names_is_bounded(read):
    array = np.zeros(10**6, "float32")
    assert len(read(pickle.dumps({str(index): array for index in range(4)}))) == 4
    with pytest.raises(CheckpointError, match=r"contents of at most .* bytes, 20 times the file's size"):
        read(pickle.dumps({str(index): array for index in range(40)}))


def test_duplicated_containers_beside_the_arrays(read, written):
    bomb = b"]q\x000" + b"".join(b"](" + b"h\x00" * 10 + b"eq\x000" for _ in range(100)) + b"h\x00"
    array = pickle.dumps(np.ones(2), 2)[2:-1]
    content = b"\x80\x02}(" + written.encode("bomb") + bomb + written.encode("w") + array + b"u."
    assert list(read(content)) == ["w"]


def test_axes_that_are_no_permutation(read, written):
    for axes in ((0, 0), (1,), (0, 2), ("a", "b")):
        arguments = (bytes(8), dtype_of(written, "f4"), (1, 2), "K", axes)
        array = written.Call(written.Global("numpy._core.numeric", "_frombuffer"), arguments)
        with pytest.raises(CheckpointError, match="axes are not a permutation"):
            read(written.pickled({"a": array}))
