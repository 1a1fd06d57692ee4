"""Decoded samples, kept in memory or in a folder."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from kmaskformer.data.wrapped_reader import WrappedReader, options_of
from kmaskformer.structures import Sample

_ARRAYS = ("image", "segment_map", "labels", "is_crowd", "image_id", "membership")


class MemoryCache(WrappedReader):
    """A reader that reads each sample once; all of them stay in memory, 7 bytes a pixel."""

    def __init__(self, reader: Any) -> None:
        super().__init__(reader)
        self._samples: dict[int, Sample] = {}

    def __getitem__(self, index: int) -> Sample:
        if index not in self._samples:
            self._samples[index] = self._reader[index]
        return self._samples[index]


class DiskCache(WrappedReader):
    """A reader that writes each sample, decoded, to a folder, and takes it from there the next time.

    A sample is read anew where the label space, the reader's options or, if the reader names its files
    (`reader.files(index)`), one of them has changed since. Where the reader does not, empty the folder after a change.
    Several processes may share it.

    Args:
        reader: The dataset.
        folder: The folder; created.
    """

    def __init__(self, reader: Any, folder: str | Path) -> None:
        super().__init__(reader)
        self._folder = Path(folder)
        self._folder.mkdir(parents=True, exist_ok=True)

    def __getitem__(self, index: int) -> Sample:
        path, fingerprint = self._folder / f"{index}.sample", self._fingerprint(index)
        sample = _read(path, fingerprint)
        if sample is None:
            sample = self._reader[index]
            _write(path, fingerprint, sample)
        return sample

    def _fingerprint(self, index: int) -> str:
        """What the sample depends on."""
        files = [path for path in self.files(index) if path.exists()]
        states = [(str(path), path.stat().st_size, path.stat().st_mtime_ns) for path in files]
        return repr((options_of(self._reader, index), self.info, states))


def _read(path: Path, fingerprint: str) -> Sample | None:
    """The sample, or None where there is none, it is of another state of the data, or its file was cut off."""
    try:
        with path.open("rb") as file:
            if str(np.load(file)) != fingerprint:
                return None
            keys = str(np.load(file)).split()
            sample: Any = {key: np.load(file) for key in keys}
    except (OSError, ValueError, EOFError):
        return None
    sample["image_id"] = str(sample["image_id"])
    return sample


def _write(path: Path, fingerprint: str, sample: Sample) -> None:
    """Under another name first, so that no other process finds half of it."""
    keys = [key for key in _ARRAYS if key in sample]
    with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as file:
        try:
            for value in (fingerprint, " ".join(keys), *(sample[key] for key in keys)):
                np.save(file, np.asarray(value))
        except BaseException:
            os.unlink(file.name)
            raise
    os.replace(file.name, path)
