"""PyTorch checkpoints without PyTorch: the zip layout of 1.6 and later, and the older one of pickles and storages.

References:
    https://github.com/pytorch/pytorch/blob/main/docs/source/notes/serialization.rst
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from kmaskformer.checkpoints.errors import CheckpointError, clip
from kmaskformer.checkpoints.mapped_archive import MappedArchive
from kmaskformer.checkpoints.mapped_file import DOWNLOAD_AGAIN
from kmaskformer.checkpoints.pickle_machine import AllowedGlobal, run_pickle
from kmaskformer.checkpoints.restricted_pickle import allowed_globals
from kmaskformer.checkpoints.state_dict import state_dict_arrays
from kmaskformer.checkpoints.torch_tensors import Storage, StorageBytes, storage_dtype, torch_globals

LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
LEGACY_PROTOCOL = 1001


def is_torch_archive(archive: MappedArchive) -> bool:
    """Whether a zip archive has the record that `torch.save` writes first."""
    return bool(_folders(archive))


def _folders(archive: MappedArchive) -> list[str]:
    names = [name for name in archive.records if name.endswith("/data.pkl") and name.count("/") == 1]
    return [name.removesuffix("data.pkl") for name in names]


def read_torch_archive(archive: MappedArchive) -> dict[str, np.ndarray]:
    """Named arrays of a file in PyTorch's zip layout; views of the file.

    Raises:
        CheckpointError: If the file is truncated, corrupt, hostile or no dictionary of tensors.
    """
    folders = _folders(archive)
    if len(folders) != 1 or f"{folders[0]}constants.pkl" in archive:
        found = "a TorchScript program" if len(folders) == 1 else f"{len(folders)} of them"
        raise CheckpointError(
            archive.path, "one PyTorch archive of weights", found, "Save `model.state_dict()` with `torch.save`."
        )
    source = f"{archive.path} (record {clip(folders[0] + 'data.pkl')})"
    order = ">" if _is_big_endian(archive, folders[0]) else "<"
    pickled = archive.read(f"{folders[0]}data.pkl")
    content, _end = run_pickle(
        memoryview(pickled),
        source,
        {**allowed_globals(pickled.size), **torch_globals(order)},
        _load_from_archive(archive, folders[0], order),
    )
    return state_dict_arrays(archive.path, content, archive.data.size)


def read_legacy_torch(path: Path, data: np.ndarray) -> dict[str, np.ndarray]:
    """Named arrays of a file in PyTorch's layout before 1.6; views of the file.

    Args:
        path: The file, for messages.
        data: Its bytes, `(bytes,)` uint8.

    Raises:
        CheckpointError: If the file is truncated, corrupt, hostile or no dictionary of tensors.
    """
    return state_dict_arrays(path, _read_legacy(str(path), memoryview(data)), data.size)


def read_pickled_storage(source: str, data: Any) -> Storage:
    """The storage in the bytes by which a plain pickle stands for it: a file of the older layout within the file.

    Args:
        source: The outer file, for messages.
        data: The bytes.
    """
    if not isinstance(data, bytes | memoryview):
        raise ValueError("a storage without bytes")
    storage = _read_legacy(f"{source} (storage within)", memoryview(data))
    if not isinstance(storage, Storage):
        raise ValueError(f"a {type(storage).__name__} in place of a storage")
    return storage


def _is_big_endian(archive: MappedArchive, folder: str) -> bool:
    if f"{folder}byteorder" not in archive:
        return False
    order = archive.read(f"{folder}byteorder").tobytes()
    if order not in (b"little", b"big"):
        raise CheckpointError(archive.path, "byte order little or big", clip(order), DOWNLOAD_AGAIN)
    return order == b"big"


def _load_from_archive(archive: MappedArchive, folder: str, order: str) -> Callable[[Any], Storage]:
    contents: dict[str, StorageBytes] = {}

    def load(identity: Any) -> Storage:
        kind, key, count, _view = _storage_identity(identity)
        dtype = storage_dtype(kind, order)
        if key not in contents:
            data = archive.read(f"{folder}data/{key}")
            contents[key] = StorageBytes(key, data.size, dtype.itemsize, data)
        if count * dtype.itemsize != contents[key].length:
            raise ValueError(f"storage {clip(key)} has {contents[key].length} bytes, not {count} of {dtype}")
        return Storage(contents[key], dtype)

    return load


def _storage_identity(identity: Any) -> tuple[AllowedGlobal, str, int, Any]:
    if type(identity) is not tuple or len(identity) not in (5, 6) or identity[0] != "storage":
        what = identity[0] if type(identity) is tuple and identity else type(identity).__name__
        raise ValueError(f"a persistent id of {clip(what)}, not of a storage")
    _, kind, key, _location, count, *view = identity
    if not isinstance(key, str) or type(count) is not int or count < 0:
        raise ValueError("a storage without key or size")
    return kind, key, count, view[0] if view else None


def _read_legacy(source: str, data: memoryview) -> Any:
    """Value of a legacy file: three pickles that describe it, one of its content, one of the storages, and those."""
    reader = _LegacyReader(source, data)
    if (reader.unpickle({}), reader.unpickle({})) != (LEGACY_MAGIC, LEGACY_PROTOCOL):
        raise CheckpointError(
            source, f"PyTorch's older layout, protocol {LEGACY_PROTOCOL}", "another", "Save it again with PyTorch."
        )
    system = reader.unpickle({})
    order = "<" if type(system) is dict and system.get("little_endian", True) else ">"
    contents: dict[str, StorageBytes] = {}
    allowed = {**allowed_globals(len(data)), **torch_globals(order)}
    value = reader.unpickle(allowed, _load_later(contents, order))
    reader.fill(contents, reader.unpickle({}), order)
    return value


def _load_later(contents: dict[str, StorageBytes], order: str) -> Callable[[Any], Storage]:
    def load(identity: Any) -> Storage:
        kind, key, count, view = _storage_identity(identity)
        dtype, start = storage_dtype(kind, order), 0
        if view is not None:
            _view_key, start, _size = view
        content = contents.setdefault(key, StorageBytes(key, count * dtype.itemsize, dtype.itemsize))
        if type(start) is not int or not 0 <= start * dtype.itemsize <= content.length:
            raise ValueError(f"a view of storage {clip(key)} that begins outside it")
        return Storage(content, dtype, start * dtype.itemsize)

    return load


class _LegacyReader:
    """Position in a file of the older layout."""

    def __init__(self, source: str, data: memoryview) -> None:
        self.source = source
        self.rest = data

    def unpickle(self, allowed: Any, persistent_load: Callable[[Any], Any] | None = None) -> Any:
        value, end = run_pickle(self.rest, self.source, allowed, persistent_load)
        self.rest = self.rest[end:]
        return value

    def fill(self, contents: dict[str, StorageBytes], keys: Any, order: str) -> None:
        """Gives the storages their bytes, which follow in the order of `keys`, each after its number of elements."""
        if type(keys) is not list or not all(type(key) is str for key in keys) or sorted(keys) != sorted(contents):
            raise self._corrupt(f"{len(contents)} storages", "a list of others")
        for key in keys:
            content = contents[key]
            count = int.from_bytes(self._take(8, key), "little" if order == "<" else "big")
            if count * content.itemsize != content.length:
                raise self._corrupt(f"{content.length} bytes of storage {clip(key)}", f"{count} elements")
            content.data = np.frombuffer(self._take(content.length, key), np.uint8)
        if len(self.rest):
            raise self._corrupt("the end after the last storage", f"{len(self.rest)} more bytes")

    def _take(self, length: int, key: str) -> memoryview:
        if length > len(self.rest):
            raise self._corrupt(f"{length} bytes of storage {clip(key)}", f"{len(self.rest)} bytes")
        taken, self.rest = self.rest[:length], self.rest[length:]
        return taken

    def _corrupt(self, expected: str, found: str) -> CheckpointError:
        return CheckpointError(self.source, expected, found, DOWNLOAD_AGAIN)
