"""Reads a checkpoint of any known kind into named NumPy arrays, without PyTorch."""

from __future__ import annotations

import json
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np

from kmaskformer.checkpoints.detectron2_pickle import read_detectron2_pickle
from kmaskformer.checkpoints.errors import CheckpointError, clip
from kmaskformer.checkpoints.keras_files import (
    HDF5_SIGNATURE,
    KERAS_WEIGHTS,
    read_keras_archive,
    read_keras_weights,
)
from kmaskformer.checkpoints.mapped_archive import MappedArchive
from kmaskformer.checkpoints.mapped_file import DOWNLOAD_AGAIN, map_file
from kmaskformer.checkpoints.safetensors_files import read_safetensors
from kmaskformer.checkpoints.torch_files import (
    LEGACY_MAGIC,
    is_torch_archive,
    read_legacy_torch,
    read_torch_archive,
)

# What a folder may hold, in Hugging Face's order of preference.
FOLDER_NAMES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
    KERAS_WEIGHTS,
)
KINDS = (
    "a checkpoint: safetensors, PyTorch (.bin, .pth), detectron2 (.pkl), Keras (.weights.h5, .keras), "
    "or the JSON index of a sharded one"
)

_MAGIC_PICKLE = b"\x8a\x0a" + LEGACY_MAGIC.to_bytes(10, "little") + b"."
_LONGEST_INDEX = 64 * 2**20
_PEEK_BYTES = 512
_DOWNLOAD_FAILED = "The download saved a message in place of the file: download it again, signed in if the site asks."


def read_checkpoint(path: str | PathLike[str]) -> dict[str, np.ndarray]:
    """Named arrays of a checkpoint.

    The kind is told by the file's content, not by its name. Pickles are read by a restricted unpickler that builds
    arrays and plain containers only.

    Args:
        path: A file; the JSON index of a sharded checkpoint; or a folder that holds one of `FOLDER_NAMES`.

    Returns:
        `{name: array}` under the names in the file, stripped of nothing but the key (`model`, `state_dict`,
        `model_state`, `blobs`) under which a training script keeps its weights. The arrays are read-only views of the
        mapped file wherever it stores them uncompressed: they take no memory until they are used, may be unaligned, and
        the file must not be overwritten while they live. Tensors in bfloat16 have the dtype `ml_dtypes.bfloat16`.

    Raises:
        CheckpointError: If the path does not exist, or the file is truncated, corrupt, hostile or of another kind.
    """
    path = Path(path)
    if path.is_dir():
        path = _checkpoint_in(path)
    if not path.is_file():
        raise CheckpointError(path, KINDS, "no such file", "Check the path.")
    data = map_file(path)
    if _is_json(data):
        return _read_sharded(path, data)
    return _read_file(path, data)


def _checkpoint_in(folder: Path) -> Path:
    for name in FOLDER_NAMES:
        if (folder / name).is_file():
            return folder / name
    found = ", ".join(sorted(entry.name for entry in folder.iterdir())[:8]) or "an empty folder"
    raise CheckpointError(
        folder, f"a folder with one of {', '.join(FOLDER_NAMES)}", found, "Name the checkpoint's file itself."
    )


def _read_file(path: Path, data: np.ndarray) -> dict[str, np.ndarray]:
    start = data[:_PEEK_BYTES].tobytes()
    if start.startswith((b"PK\x03\x04", b"PK\x05\x06")):
        return _read_archive(path, data)
    if _has_hdf5_signature(data):
        return read_keras_weights(path, data)
    if start[8:9] == b"{":
        return read_safetensors(path, data)
    if start[2:].startswith(_MAGIC_PICKLE):
        return read_legacy_torch(path, data)
    # Protocol 2 and later begin with the protocol, the oldest ones with a mark, a container or a global.
    _refuse_other_kinds(path, start)
    if start[:1] in (b"\x80", b"(", b"}", b"]", b"c"):
        return read_detectron2_pickle(path, data)
    raise CheckpointError(path, KINDS, f"a file that begins with {clip(start[:32])}", DOWNLOAD_AGAIN)


def _read_archive(path: Path, data: np.ndarray) -> dict[str, np.ndarray]:
    archive = MappedArchive(path, data)
    if is_torch_archive(archive):
        return read_torch_archive(archive)
    if KERAS_WEIGHTS in archive:
        return read_keras_archive(archive)
    found = f"a zip archive of {', '.join(clip(name) for name in list(archive.records)[:5]) or 'nothing'}"
    raise CheckpointError(
        path, f"PyTorch's data.pkl or Keras' {KERAS_WEIGHTS} in the archive", found, "Unpack it and name the weights."
    )


def _has_hdf5_signature(data: np.ndarray) -> bool:
    # It stands at byte 0, or after a block for the user of 512 bytes, 1024, and so on.
    starts = [0, *(512 << power for power in range(12))]
    return any(data[start : start + len(HDF5_SIGNATURE)].tobytes() == HDF5_SIGNATURE for start in starts)


def _refuse_other_kinds(path: Path, start: bytes) -> None:
    text = start.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if text.startswith(b"version https://git-lfs"):
        raise CheckpointError(
            path, KINDS, "a Git LFS pointer, not the file it points to", "Run `git lfs pull`, or download the file."
        )
    if text.startswith((b"<!doctype", b"<html", b"<?xml", b"<head", b"<error")):
        raise CheckpointError(path, KINDS, f"a web page or error message: {clip(start[:80])}", _DOWNLOAD_FAILED)
    if start.startswith((b"\x1f\x8b", b"\xfd7zXZ", b"BZh", b"7z\xbc\xaf")) or start[257:262] == b"ustar":
        raise CheckpointError(path, KINDS, "a compressed or tar archive", "Unpack it and name the checkpoint in it.")


# Sharded checkpoints.


def _is_json(data: np.ndarray) -> bool:
    # A safetensors file may begin with the same byte; its length has zero bytes, which text has not.
    start = data[:_PEEK_BYTES].tobytes()
    return start.lstrip()[:1] == b"{" and b"\0" not in start[:8]


def _read_sharded(path: Path, data: np.ndarray) -> dict[str, np.ndarray]:
    shards = _shards(path, data)
    missing = [name for name in shards if not (path.parent / name).is_file()]
    if missing:
        raise CheckpointError(
            path,
            f"its {len(shards)} shards beside it",
            f"{len(missing)} missing: {', '.join(clip(name) for name in missing[:5])}",
            "Download the missing files into the same folder.",
        )
    arrays: dict[str, np.ndarray] = {}
    for name, expected in shards.items():
        shard = _read_shard(path.parent / name, expected)
        twice = sorted(arrays.keys() & shard.keys())
        if twice:
            found = f"{clip(twice[0])} in {clip(name)} and in another"
            raise CheckpointError(path, "every tensor in one shard", found, "The shards do not belong together.")
        arrays |= shard
    return arrays


def _read_shard(path: Path, expected: list[str]) -> dict[str, np.ndarray]:
    data = map_file(path)
    if _is_json(data):
        raise CheckpointError(path, "a shard", "text in JSON", "Download the shard again.")
    arrays = _read_file(path, data)
    # Keras' index names groups of arrays.
    groups = {"/" + name.rpartition("/")[0] for name in arrays}
    absent = [name for name in expected if name not in arrays and name not in groups]
    if absent:
        found = f"{len(absent)} of them missing: {', '.join(clip(name) for name in absent[:5])}"
        raise CheckpointError(path, f"the {len(expected)} tensors that the index names", found, DOWNLOAD_AGAIN)
    return arrays


def _shards(path: Path, data: np.ndarray) -> dict[str, list[str]]:
    """Names of the tensors in each shard, `{file: [name, ...]}`."""
    shards: dict[str, list[str]] = {}
    for name, files in _weight_map(path, data).items():
        for file in files if isinstance(files, list) else [files]:
            if not isinstance(file, str) or file in ("", "..") or Path(file).name != file:
                found = f"{clip(file)} for {clip(name)}"
                raise CheckpointError(path, "names of files in the same folder", found, "Do not use this index.")
            shards.setdefault(file, []).append(name)
    return shards


def _weight_map(path: Path, data: np.ndarray) -> dict[str, Any]:
    try:
        index = json.loads(data[:_LONGEST_INDEX].tobytes())
    except (ValueError, RecursionError) as error:
        raise CheckpointError(path, "an index in JSON", f"{type(error).__name__}: {error}", DOWNLOAD_AGAIN) from error
    weight_map = index.get("weight_map") if type(index) is dict else None
    if type(weight_map) is not dict or not weight_map:
        found = f"JSON with {', '.join(clip(key) for key in list(index)[:5])}"
        raise CheckpointError(
            path, "the index of a sharded checkpoint, with a `weight_map`", found, "Name the file with the weights."
        )
    return weight_map
