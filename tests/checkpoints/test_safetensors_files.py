"""Safetensors files, good and bad."""

from __future__ import annotations

import json

import ml_dtypes
import numpy as np
import pytest

from kmaskformer.checkpoints.errors import CheckpointError
from kmaskformer.checkpoints.reader import read_checkpoint

CODES = {
    "F64": "float64",
    "F32": "float32",
    "F16": "float16",
    "BF16": ml_dtypes.bfloat16,
    "I64": "int64",
    "I32": "int32",
    "I16": "int16",
    "I8": "int8",
    "U64": "uint64",
    "U32": "uint32",
    "U16": "uint16",
    "U8": "uint8",
    "BOOL": "bool",
}


@pytest.fixture()
def save(tmp_path):
    def call(header, content=b"", length=None):
        text = header if isinstance(header, bytes) else json.dumps(header).encode()
        path = tmp_path / "model.safetensors"
        path.write_bytes((len(text) if length is None else length).to_bytes(8, "little") + text + content)
        return path

    return call


def entry(begin, end, shape, dtype="F32"):
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def test_element_types(save, written):
    header, content = {"__metadata__": {"format": "pt"}}, b""
    arrays = {code: np.arange(6).reshape(2, 3).astype(dtype) for code, dtype in CODES.items()}
    for code, array in arrays.items():
        header[code] = entry(len(content), len(content) + array.nbytes, [2, 3], code)
        content += array.tobytes()
    result = read_checkpoint(save(header, content))
    assert list(result) == list(CODES)
    for code, array in arrays.items():
        assert result[code].dtype == array.dtype
        np.testing.assert_array_equal(result[code], array)
        assert written.is_view_of_file(result[code])
        assert not result[code].flags.writeable


def test_any_order_of_names_scalars_and_empty_tensors(save):
    content = np.arange(3, dtype="float32").tobytes()
    header = {"b": entry(4, 12, [2]), "empty": entry(4, 4, [0, 7]), "a": entry(0, 4, []), "last": entry(12, 12, [0])}
    result = read_checkpoint(save(header, content))
    np.testing.assert_array_equal(result["b"], [1, 2])
    assert result["a"].shape == ()
    assert result["empty"].shape == (0, 7)


@pytest.mark.parametrize("length", [19280, 123, 0x8B1F])
def test_header_lengths_that_look_like_other_kinds(length, save):
    # 0x4B50 is the beginning of a zip archive, 123 is a brace, 0x8B1F is gzip.
    text = json.dumps({"a": entry(0, 4, [1])}).encode().ljust(length)
    np.testing.assert_array_equal(read_checkpoint(save(text, bytes(4)))["a"], [0])


def test_without_tensors(save):
    assert read_checkpoint(save({})) == {}


@pytest.mark.parametrize(
    ("header", "size", "found"),
    [
        ({"a": entry(0, 8, [2]), "b": entry(4, 12, [2])}, 12, "tensor 'b' to begin at byte 8.*at byte 4"),
        ({"a": entry(0, 8, [2]), "b": entry(0, 8, [2])}, 8, "tensor 'b' to begin at byte 8.*at byte 0"),
        ({"a": entry(4, 8, [1])}, 8, "tensor 'a' to begin at byte 0"),
        ({"a": entry(0, 8, [2])}, 4, "8 bytes of tensors. Found: 4 bytes"),
        ({"a": entry(0, 8, [2])}, 9, "8 bytes of tensors. Found: 9 bytes"),
        ({"a": entry(0, 2**40, [2**38])}, 8, f"{2**40} bytes of tensors. Found: 8 bytes"),
        ({"a": entry(8, 0, [2])}, 8, "`data_offsets` of tensor 'a'"),
        ({"a": entry(-8, 0, [2])}, 8, "`data_offsets` of tensor 'a'"),
        ({"a": entry(0.0, 8, [2])}, 8, "`data_offsets` of tensor 'a'"),
        ({"a": entry(0, 10**30, [2])}, 8, "`data_offsets` of tensor 'a'"),
        ({"a": {"dtype": "F32", "shape": [2]}}, 8, "`data_offsets` of tensor 'a'"),
        ({"a": 3}, 8, "`data_offsets` of tensor 'a'"),
        ({"a": entry(0, 8, [3])}, 8, "tensor 'a' with a shape that takes 8 bytes. Found: '3'"),
        ({"a": entry(0, 8, [-2])}, 8, "with a shape that takes 8 bytes"),
        ({"a": entry(0, 8, [True, 2])}, 8, "with a shape that takes 8 bytes"),
        ({"a": entry(0, 8, None)}, 8, "with a shape that takes 8 bytes"),
        ({"a": entry(0, 4, [1] * 70)}, 4, "with a shape that takes 4 bytes"),
        ({"a": entry(0, 0, [2**60, 2**60, 0])}, 0, "with a shape that takes 0 bytes"),
        ({"a": entry(0, 8, [2], "F4")}, 8, "Found: 'F4'. Save the weights as float32"),
        ({"a": entry(0, 8, [2], None)}, 8, "Found: None. Save the weights as float32"),
        (b'{"a": 1, "a": 2}', 0, "a name that occurs twice"),
        (b'{"a": ', 0, "a header in JSON"),
        (b'{"a": "\xff"}', 0, "a header in JSON"),
        (b'{"a":' + b"[" * 100_000, 0, "RecursionError"),
        (b'{"a": 1' + b"0" * 5000 + b"}", 0, "a header in JSON"),
    ],
)
def test_bad_headers(header, size, found, save):
    with pytest.raises(CheckpointError, match=rf"model\.safetensors: expected .*{found}"):
        read_checkpoint(save(header, bytes(size)))


@pytest.mark.parametrize("length", [2**63, 2**64 - 1, 200_000_000, 10**6, 0, 1])
def test_bad_header_lengths(length, save):
    with pytest.raises(CheckpointError, match=f"a header of 2 to 100000000 bytes. Found: length {length}, with"):
        read_checkpoint(save({"a": entry(0, 4, [1])}, bytes(4), length))


def test_truncated_files(save, tmp_path):
    data = save({"a": entry(0, 40, [10])}, bytes(40)).read_bytes()
    for length in range(1, len(data)):
        (tmp_path / "cut").write_bytes(data[:length])
        with pytest.raises(CheckpointError):
            read_checkpoint(tmp_path / "cut")


@pytest.mark.parity
def test_files_of_the_safetensors_library(tmp_path):
    torch = pytest.importorskip("torch")
    from safetensors.torch import save_file

    names = ["float64", "float32", "float16", "bfloat16", "int64", "int32", "int16", "int8", "uint8", "bool"]
    content = {name: (torch.randn(3, 4) * 40).to(getattr(torch, name)) for name in names}
    content |= {"scalar": torch.tensor(2.0), "empty": torch.zeros(0, 3)}
    save_file(content, tmp_path / "model.safetensors", {"format": "pt"})
    result = read_checkpoint(tmp_path)
    assert sorted(result) == sorted(content)
    for name, tensor in content.items():
        expected = tensor.float().numpy() if name == "bfloat16" else tensor.numpy()
        assert str(result[name].dtype) == str(tensor.dtype).removeprefix("torch.")
        np.testing.assert_array_equal(result[name].astype(expected.dtype), expected)
