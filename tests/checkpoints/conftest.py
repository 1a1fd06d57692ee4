"""Writers of checkpoints by hand: PyTorch is not installed where the default tests run."""

from __future__ import annotations

import struct
import zipfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import pytest


class Global(NamedTuple):
    """A name that a pickle imports."""

    module: str
    name: str


class Call(NamedTuple):
    """A call of a global, or of anything that comes to lie on the stack."""

    function: Any
    arguments: tuple[Any, ...]


class State(NamedTuple):
    """An object and the state that BUILD gives it."""

    target: Any
    state: Any


class Persistent(NamedTuple):
    """A persistent id."""

    identity: Any


class Raw(NamedTuple):
    """Opcodes as they are."""

    opcodes: bytes


def encode(value: Any) -> bytes:
    """Opcodes of protocol 2 and 3 that put a value on the stack."""
    match value:
        case Raw(opcodes):
            return opcodes
        case Global(module, name):
            return b"c%s\n%s\n" % (module.encode(), name.encode())
        case Call(function, arguments):
            return encode(function) + encode(arguments) + b"R"
        case State(target, state):
            return encode(target) + encode(state) + b"b"
        case Persistent(identity):
            return encode(identity) + b"Q"
        case None:
            return b"N"
        case bool():
            return b"\x88" if value else b"\x89"
        case int():
            length = value.bit_length() // 8 + 1
            return b"\x8a" + bytes([length]) + value.to_bytes(length, "little", signed=True)
        case str():
            return b"X" + struct.pack("<I", len(value.encode())) + value.encode()
        case bytes():
            return b"B" + struct.pack("<I", len(value)) + value
        case tuple():
            return b"(" + b"".join(map(encode, value)) + b"t"
        case list():
            return b"](" + b"".join(map(encode, value)) + b"e"
        case dict():
            return b"}(" + b"".join(encode(key) + encode(item) for key, item in value.items()) + b"u"
    raise TypeError(f"cannot encode {value!r}")


def pickled(value: Any) -> bytes:
    """A pickle of a value."""
    return b"\x80\x02" + encode(value) + b"."


def tensor(key: str, kind: str, count: int, shape: tuple, strides: tuple, offset: int = 0, view: tuple = ()) -> Call:
    """A tensor as `torch.save` pickles it."""
    storage = Persistent(("storage", Global("torch", f"{kind}Storage"), key, "cpu", count, *view))
    hooks = Call(Global("collections", "OrderedDict"), ())
    return Call(Global("torch._utils", "_rebuild_tensor_v2"), (storage, offset, shape, strides, False, hooks))


def write_torch_archive(
    path: Path, content: Any, storages: dict[str, bytes], compression: int = zipfile.ZIP_STORED, **records: bytes
) -> Path:
    """A file in PyTorch's zip layout."""
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr("archive/data.pkl", content if isinstance(content, bytes) else pickled(content))
        for name, data in {"byteorder": b"little", "version": b"3\n", **records}.items():
            archive.writestr(f"archive/{name}", data)
        for key, data in storages.items():
            archive.writestr(f"archive/data/{key}", data)
    return path


def legacy_torch(content: Any, storages: dict[str, tuple[int, bytes]], order: str = "<") -> bytes:
    """Bytes of a file in PyTorch's layout before 1.6; `storages` are `{key: (elements, bytes)}`."""
    head = [0x1950A86A20F9469CFC6C, 1001, {"protocol_version": 1001, "little_endian": order == "<"}]
    parts = [pickled(part) for part in [*head, content, list(storages)]]
    return b"".join(parts) + b"".join(struct.pack(f"{order}q", count) + data for count, data in storages.values())


def is_view_of_file(array: np.ndarray) -> bool:
    """Whether an array's memory is a mapped file."""
    base: Any = array
    while base is not None:
        if type(base).__name__ == "mmap":
            return True
        base = base.obj if isinstance(base, memoryview) else getattr(base, "base", None)
    return False


@pytest.fixture(scope="session")
def written() -> SimpleNamespace:
    """The writers of this module."""
    return SimpleNamespace(
        Global=Global,
        Call=Call,
        State=State,
        Persistent=Persistent,
        Raw=Raw,
        encode=encode,
        pickled=pickled,
        tensor=tensor,
        torch_archive=write_torch_archive,
        legacy_torch=legacy_torch,
        is_view_of_file=is_view_of_file,
    )
