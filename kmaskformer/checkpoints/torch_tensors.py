"""Harmless stand-ins for what PyTorch's pickles name: storages, and tensors as views of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import ml_dtypes
import numpy as np

from kmaskformer.checkpoints.mapped_file import strided_view
from kmaskformer.checkpoints.pickle_machine import AllowedGlobal
from kmaskformer.checkpoints.restricted_pickle import StoredArray

_STORAGES = {
    "Double": np.float64,
    "Float": np.float32,
    "Half": np.float16,
    "BFloat16": ml_dtypes.bfloat16,
    "Long": np.int64,
    "Int": np.int32,
    "Short": np.int16,
    "Char": np.int8,
    "Byte": np.uint8,
    "Bool": np.bool_,
    "ComplexFloat": np.complex64,
    "ComplexDouble": np.complex128,
}
_DTYPES = {
    "float64": np.float64,
    "float32": np.float32,
    "float16": np.float16,
    "bfloat16": ml_dtypes.bfloat16,
    "int64": np.int64,
    "int32": np.int32,
    "int16": np.int16,
    "int8": np.int8,
    "uint64": np.uint64,
    "uint32": np.uint32,
    "uint16": np.uint16,
    "uint8": np.uint8,
    "bool": np.bool_,
    "complex64": np.complex64,
    "complex128": np.complex128,
}
_MOST_AXES = 64


@dataclass
class StorageBytes:
    """The bytes of one storage; files of the old layout bring them after the tensors.

    Args:
        key: Name of the storage in its file.
        length: Bytes it must have.
        itemsize: Bytes of an element.
        data: `(bytes,)` uint8, or None until they are known.
    """

    key: str
    length: int
    itemsize: int = 1
    data: np.ndarray | None = field(default=None, repr=False)


@dataclass
class Storage:
    """A typed storage, or a part of one.

    Args:
        content: Its bytes.
        dtype: Type of the elements.
        start: First byte.
    """

    content: StorageBytes
    dtype: np.dtype
    start: int = 0


@dataclass
class Tensor(StoredArray):
    """A tensor: a view of a storage, with offset and strides counted in elements."""

    storage: Storage
    offset: Any
    shape: Any
    strides: Any
    dtype: np.dtype

    def to_array(self) -> np.ndarray:
        """The tensor's elements, a view of the file."""
        content = self.storage.content
        if content.data is None:
            raise ValueError(f"a tensor whose storage {content.key} is not in the file")
        return strided_view(content.data[self.storage.start :], self.dtype, self.shape, self.offset, self.strides)


def storage_dtype(kind: Any, order: str) -> np.dtype:
    """Type of a storage's elements.

    Args:
        kind: Token of the storage's class.
        order: Byte order of the file, `<` or `>`.
    """
    name = kind.name.rpartition(".")[2].removesuffix("Storage") if isinstance(kind, AllowedGlobal) else None
    if name == "Untyped":
        return np.dtype(np.uint8)
    if name not in _STORAGES:
        raise ValueError("a persistent id without a storage class")
    return _ordered(np.dtype(_STORAGES[name]), order)


def torch_globals(
    order: str = "<", load_from_bytes: Callable[[Any], Storage] | None = None
) -> dict[tuple[str, str], AllowedGlobal]:
    """What a pickle of tensors may name besides what a pickle of arrays may.

    Args:
        order: Byte order of the file, `<` or `>`.
        load_from_bytes: Reads a storage that lies within a plain pickle; None refuses those.
    """

    def rebuild_with_dtype(storage, offset, shape, strides, requires_grad, hooks, dtype, metadata=None):
        name = dtype.name.removeprefix("torch.") if isinstance(dtype, AllowedGlobal) else None
        if name not in _DTYPES:
            raise ValueError("a tensor without a dtype")
        element = _ordered(np.dtype(_DTYPES[name]), order)
        return _tensor(storage, offset, shape, strides, element, metadata)

    calls: dict[tuple[str, str], Callable[..., Any] | None] = {
        ("torch._utils", "_rebuild_tensor"): _rebuild,
        ("torch._utils", "_rebuild_tensor_v2"): _rebuild,
        ("torch._utils", "_rebuild_tensor_v3"): rebuild_with_dtype,
        ("torch._utils", "_rebuild_parameter"): _parameter,
        ("torch._utils", "_rebuild_parameter_with_state"): _parameter,
        ("torch._tensor", "_rebuild_from_type_v2"): _rebuild_from_type,
        ("torch", "Size"): _size,
        ("torch", "device"): lambda *_: None,
        ("torch", "Tensor"): None,
        ("torch.nn.parameter", "Parameter"): None,
        ("torch.storage", "UntypedStorage"): None,
        **{("torch", f"{name}Storage"): None for name in _STORAGES},
        **{("torch", name): None for name in _DTYPES},
    }
    if load_from_bytes is not None:
        calls["torch.storage", "_load_from_bytes"] = load_from_bytes
    return {key: AllowedGlobal(".".join(key), call) for key, call in calls.items()}


def _size(sizes: Any = ()) -> tuple:
    if type(sizes) not in (list, tuple):
        return ()
    if len(sizes) > _MOST_AXES:  # before it is copied: a small file could ask for that a million times
        raise ValueError(f"a size with {len(sizes)} axes")
    return tuple(sizes)


def _rebuild(storage, offset, shape, strides, requires_grad=False, hooks=None, metadata=None) -> Tensor:
    if not isinstance(storage, Storage):
        raise ValueError("a tensor without a storage")
    return _tensor(storage, offset, shape, strides, storage.dtype, metadata)


def _tensor(storage, offset, shape, strides, dtype: np.dtype, metadata: Any) -> Tensor:
    if not isinstance(storage, Storage):
        raise ValueError("a tensor without a storage")
    if metadata:
        raise ValueError("a tensor with delayed conjugation or negation, which state dicts do not have")
    return Tensor(storage, offset, shape, strides, dtype)


def _parameter(data: Any, requires_grad: Any = True, hooks: Any = None, state: Any = None) -> Tensor:
    if not isinstance(data, Tensor):
        raise ValueError("a parameter without a tensor")
    return data


def _rebuild_from_type(function: Any, kind: Any, arguments: Any, state: Any) -> Tensor:
    # A tensor with attributes set by Python code: the attributes are dropped.
    is_rebuild = isinstance(function, AllowedGlobal) and function.name.startswith("torch._utils._rebuild_tensor")
    if not is_rebuild or type(arguments) is not tuple:
        raise ValueError("a tensor without a rebuild function")
    return function.call(*arguments)


def _ordered(dtype: np.dtype, order: str) -> np.dtype:
    return dtype.newbyteorder(order) if dtype.itemsize > 1 and order == ">" else dtype
