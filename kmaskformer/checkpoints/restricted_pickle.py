"""Restricted unpickler: builds NumPy arrays, numbers, strings and plain containers, and nothing else."""

from __future__ import annotations

import re
from typing import Any

import ml_dtypes
import numpy as np

from kmaskformer.checkpoints.errors import clip
from kmaskformer.checkpoints.mapped_file import is_sizes, strided_view
from kmaskformer.checkpoints.pickle_machine import AllowedGlobal, RefusedError, Restorable, pairs

# Truth values, integers, floats, complex numbers; bytes and text, which carry no weights but do no harm.
_DTYPE = re.compile(r"[<>=|]?(b1|[iu][1248]|f[248]|c(8|16)|[SU]\d{0,6})")
_NUMPY_MODULES = ("numpy.core", "numpy._core")


class StoredArray:
    """An array that a pickle describes; made when the whole file is known."""

    def to_array(self) -> np.ndarray:
        """The array, a view of the file where possible.

        Raises:
            ValueError: If the description is incomplete or does not fit the stored bytes.
        """
        raise NotImplementedError


class PickledDtype(Restorable):
    """Stand-in for `numpy.dtype`."""

    def __init__(self, code: Any, *_: Any) -> None:
        if isinstance(code, AllowedGlobal) and code.name == "ml_dtypes.bfloat16":
            self.dtype = np.dtype(ml_dtypes.bfloat16)
        elif isinstance(code, str) and _DTYPE.fullmatch(code):
            self.dtype = np.dtype(code)
        else:
            # Object arrays could hold anything.
            raise RefusedError(f"numpy.dtype({clip(code)}), which is not a type of numbers")

    def set_state(self, state: Any) -> None:
        """Takes the byte order; subarrays and fields are refused."""
        _version, order, subarray, names, fields = state[:5]
        if (subarray, names, fields) != (None, None, None) or order not in ("<", ">", "=", "|"):
            raise RefusedError("numpy.dtype with fields")
        if self.dtype.itemsize > 1 and order in "<>":
            self.dtype = self.dtype.newbyteorder(order)


class PickledArray(StoredArray, Restorable):
    """Stand-in for an `ndarray` or a NumPy scalar.

    Args:
        shape: Sizes, or None until the state is set.
        dtype: Type of the elements.
        fortran: Whether the first index runs fastest.
        data: Bytes; a string, from Python 2, stands for its Latin-1 bytes.
        axes: Order in which to permute the axes at last, or None.
    """

    def __init__(
        self, shape: Any = None, dtype: Any = None, fortran: Any = False, data: Any = None, axes: Any = None
    ) -> None:
        self.set_state((shape, dtype, fortran, data))
        self.axes = axes

    def set_state(self, state: Any) -> None:
        """Takes `(version, shape, dtype, fortran, data)`; NumPy's oldest pickles have no version."""
        self.shape, self.dtype, self.fortran, self.data = state[-4:]

    def to_array(self) -> np.ndarray:
        """The array, a view of the pickle's bytes."""
        if not isinstance(self.dtype, PickledDtype) or not isinstance(self.shape, tuple):
            raise ValueError("an array without dtype and shape")
        data = self.data.encode("latin1") if isinstance(self.data, str) else self.data
        if not isinstance(data, bytes | memoryview):
            raise ValueError(f"an array whose data is of type {type(data).__name__}, not bytes")
        buffer, dtype = np.frombuffer(data, np.uint8), self.dtype.dtype
        shape = self.shape[::-1] if self.fortran else self.shape
        array = strided_view(buffer, dtype, shape)
        if array.nbytes != buffer.size:
            raise ValueError(f"an array of shape {self.shape} and dtype {dtype} with {buffer.size} bytes of data")
        if self.axes is not None:
            return _permuted(array, self.axes)
        return array.T if self.fortran else array


def _permuted(array: np.ndarray, axes: Any) -> np.ndarray:
    if not is_sizes(axes) or sorted(axes) != list(range(array.ndim)):
        raise ValueError("an array whose axes are not a permutation")
    return array.transpose(axes)


def _reconstruct(kind: Any, shape: Any, code: Any) -> PickledArray:
    if not isinstance(kind, AllowedGlobal) or kind.name != "numpy.ndarray":
        raise RefusedError(f"an array of the class {getattr(kind, 'name', type(kind).__name__)}")
    return PickledArray()


def _from_buffer(data: Any, dtype: Any, shape: Any, order: Any, axes: Any = None) -> PickledArray:
    return PickledArray(shape, dtype, order == "F", data, axes if order == "K" else None)


def _scalar(dtype: Any, data: Any = b"") -> PickledArray:
    return PickledArray((), dtype, False, data)


class _Copies:
    """The calls that copy what they are given.

    Every string, dictionary or set in a file needs that once. A pickle that copies one again and again wants to fill
    the memory: all copies together may have as many items as the file has bytes.
    """

    def __init__(self, limit: int) -> None:
        self.left = limit

    def encode(self, text: Any, encoding: Any) -> bytes:
        """`_codecs.encode`, for bytes that Python 3 pickled with protocol 2."""
        if encoding not in ("latin1", "latin-1") or not isinstance(text, str):
            raise RefusedError("_codecs.encode to anything but latin1")
        self._count(text)
        return text.encode("latin1")

    def ordered_dict(self, items: Any = ()) -> dict[Any, Any]:
        self._count(items)
        return pairs([part for item in items for part in (item[0], item[1])])

    def set(self, items: Any = ()) -> set[Any]:
        self._count(items)
        return set(pairs([part for item in items for part in (item, None)]))

    def _count(self, items: Any) -> None:
        self.left -= len(items)
        if self.left < 0:
            raise ValueError("more copied items than the file has bytes")


def allowed_globals(size: int) -> dict[tuple[str, str], AllowedGlobal]:
    """All that a pickle of arrays may name.

    Args:
        size: Bytes of the pickle, which bounds what is unpacked from it.
    """
    copies = _Copies(size)
    calls = {
        ("numpy", "ndarray"): None,
        ("numpy", "dtype"): PickledDtype,
        ("ml_dtypes", "bfloat16"): None,
        ("collections", "OrderedDict"): copies.ordered_dict,
        ("_codecs", "encode"): copies.encode,
        # Python 3 writes empty bytes and, with protocol 2, sets as calls.
        ("builtins", "bytes"): lambda: b"",
        ("__builtin__", "bytes"): lambda: b"",
        ("builtins", "set"): copies.set,
        ("__builtin__", "set"): copies.set,
    }
    for module in _NUMPY_MODULES:
        calls[f"{module}.multiarray", "_reconstruct"] = _reconstruct
        calls[f"{module}.multiarray", "scalar"] = _scalar
        calls[f"{module}.numeric", "_frombuffer"] = _from_buffer
    return {key: AllowedGlobal(".".join(key), call) for key, call in calls.items()}
