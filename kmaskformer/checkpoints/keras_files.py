"""Keras' own weight files: `.weights.h5`, and the one inside a `.keras` archive."""

from __future__ import annotations

import io
import math
from pathlib import Path
from typing import Any

import h5py
import ml_dtypes
import numpy as np

from kmaskformer.checkpoints.errors import CheckpointError, clip
from kmaskformer.checkpoints.mapped_archive import MappedArchive
from kmaskformer.checkpoints.mapped_file import DOWNLOAD_AGAIN, check_expansion, native

HDF5_SIGNATURE = b"\x89HDF\r\n\x1a\n"
KERAS_WEIGHTS = "model.weights.h5"


def read_keras_archive(archive: MappedArchive) -> dict[str, np.ndarray]:
    """Named arrays of a `.keras` file; see `read_keras_weights`."""
    return read_keras_weights(Path(f"{archive.path} (record {KERAS_WEIGHTS})"), archive.read(KERAS_WEIGHTS))


def read_keras_weights(path: Path, data: np.ndarray) -> dict[str, np.ndarray]:
    """Named arrays of a `.weights.h5` file.

    Args:
        path: The file, for messages.
        data: Its bytes, `(bytes,)` uint8.

    Returns:
        The arrays under their HDF5 paths without leading slash, as Keras wrote them: attributes of the objects that
        hold the weights, then `vars` and the number of the weight, such as `backbone/stem/conv1/vars/0`. These are not
        the paths of the variables; a model reads such a file by `load_weights`. Uncompressed arrays are views.

    Raises:
        CheckpointError: If the file is truncated or corrupt, points to other files, or holds anything but arrays.
    """
    try:
        with h5py.File(_MappedStream(data), "r") as file:
            datasets = _datasets(path, file)
            _check(path, datasets, data.size)
            return {name: native(_array(dataset, data)) for name, dataset in datasets.items()}
    except CheckpointError:
        raise
    except (OSError, RuntimeError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(path, "a complete HDF5 file", clip(str(error)), DOWNLOAD_AGAIN) from error


def _datasets(path: Path, file: h5py.File) -> dict[str, h5py.Dataset]:
    datasets: dict[str, h5py.Dataset] = {}

    def visit(name: str, item: Any) -> None:
        if isinstance(item, h5py.Dataset):
            datasets[name] = item
        else:
            _check_links(path, name, item)

    _check_links(path, "/", file)
    file.visititems(visit)
    if not datasets:
        raise CheckpointError(path, "arrays of weights", "none", "Save the weights with `model.save_weights`.")
    return datasets


def _check_links(path: Path, name: str, group: h5py.Group) -> None:
    for child in group:
        if not isinstance(group.get(child, getlink=True), h5py.HardLink):
            found = f"{clip(name)} has a link to another place, {clip(child)}"
            raise CheckpointError(path, "groups and arrays", found, "Do not use this file.")


def _check(path: Path, datasets: dict[str, h5py.Dataset], size: int) -> None:
    for name, dataset in datasets.items():
        if dataset.is_virtual or dataset.external:
            raise CheckpointError(path, "arrays", f"{clip(name)} lies in another file", "Do not use this file.")
        if dataset.shape is None or not (dataset.dtype.kind in "biufc" or _is_bfloat16(dataset)):
            found = f"{clip(name)} of type {clip(str(dataset.dtype))}"
            raise CheckpointError(path, "arrays of numbers", found, "Save the weights with `model.save_weights`.")
    total = sum(math.prod(dataset.shape) * dataset.dtype.itemsize for dataset in datasets.values())
    check_expansion(path, total, size)


def _is_bfloat16(dataset: h5py.Dataset) -> bool:
    # HDF5 has no such type: Keras writes two bytes and says what they are.
    return dataset.dtype.itemsize == 2 and dataset.attrs.get("dtype") == "bfloat16"


def _array(dataset: h5py.Dataset, data: np.ndarray) -> np.ndarray:
    dtype = np.dtype(ml_dtypes.bfloat16) if _is_bfloat16(dataset) else dataset.dtype
    start, length = dataset.id.get_offset(), math.prod(dataset.shape) * dtype.itemsize
    if start is None:
        return dataset[()].view(dtype)
    return data[start : start + length].view(dtype).reshape(dataset.shape)


class _MappedStream(io.RawIOBase):
    """A mapped file as the seekable stream that h5py reads."""

    def __init__(self, data: np.ndarray) -> None:
        self.view = memoryview(data)
        self.position = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self.position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self.position, io.SEEK_END: len(self.view)}[whence]
        self.position = start + offset
        return self.position

    def readinto(self, buffer: Any) -> int:
        taken = self.view[self.position : self.position + len(buffer)]
        buffer[: len(taken)] = taken
        self.position += len(taken)
        return len(taken)
