"""Zip archives whose uncompressed records are views of the mapped file."""

from __future__ import annotations

import zipfile
import zlib
from pathlib import Path

import numpy as np

from kmaskformer.checkpoints.errors import CheckpointError, clip
from kmaskformer.checkpoints.mapped_file import DOWNLOAD_AGAIN, check_expansion

_LOCAL_HEADER = b"PK\x03\x04"
_LOCAL_HEADER_BYTES = 30
_ENCRYPTED = 1


class MappedArchive:
    """A zip archive.

    Args:
        path: The file.
        data: Its bytes, `(bytes,)` uint8.

    Raises:
        CheckpointError: If it is truncated or corrupt, has two records of one name, or would expand out of proportion.
    """

    def __init__(self, path: Path, data: np.ndarray) -> None:
        self.path = path
        self.data = data
        try:
            with zipfile.ZipFile(path) as archive:
                records = archive.infolist()
        except (zipfile.BadZipFile, NotImplementedError, EOFError, ValueError, OSError) as error:
            raise CheckpointError(path, "a complete zip archive", str(error), DOWNLOAD_AGAIN) from error
        self.records = {record.filename: record for record in records}
        if len(self.records) != len(records):
            raise self._corrupt("records with different names", "two records of one name")
        check_expansion(path, sum(record.file_size for record in records), data.size)

    def __contains__(self, name: str) -> bool:
        return name in self.records

    def read(self, name: str) -> np.ndarray:
        """Bytes of a record.

        Returns:
            `(bytes,)` uint8: a view of the file, or a copy if the record is compressed.

        Raises:
            CheckpointError: If there is no such record, or it is truncated or does not have its checksum.
        """
        record = self.records.get(name)
        if record is None:
            raise self._corrupt(f"a record {clip(name)}", f"{len(self.records)} others")
        if record.flag_bits & _ENCRYPTED or record.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise self._corrupt(f"{clip(name)} stored or deflated", "another compression or encryption")
        if record.compress_type == zipfile.ZIP_DEFLATED:
            return self._inflate(record)
        view = self._stored(record)
        # PyTorch writes 0 where checksums are switched off.
        if record.CRC and zlib.crc32(view) != record.CRC:
            raise self._corrupt(f"{clip(name)} with checksum {record.CRC:08x}", "another checksum")
        return view

    def _stored(self, record: zipfile.ZipInfo) -> np.ndarray:
        start = record.header_offset
        header = self.data[start : start + _LOCAL_HEADER_BYTES].tobytes()
        if not header.startswith(_LOCAL_HEADER) or len(header) < _LOCAL_HEADER_BYTES:
            raise self._corrupt(f"the header of {clip(record.filename)} at byte {start}", "something else")
        start += _LOCAL_HEADER_BYTES + int.from_bytes(header[26:28], "little") + int.from_bytes(header[28:30], "little")
        view = self.data[start : start + record.file_size]
        if view.size != record.file_size or record.file_size != record.compress_size:
            raise self._corrupt(f"{record.file_size} bytes of {clip(record.filename)}", f"{view.size} bytes")
        return view

    def _inflate(self, record: zipfile.ZipInfo) -> np.ndarray:
        try:
            with zipfile.ZipFile(self.path) as archive, archive.open(record) as stream:
                # `check_expansion` bounds the declared size, and this the true one.
                content = stream.read(record.file_size + 1)
        except (zipfile.BadZipFile, zlib.error, EOFError, OSError, NotImplementedError, ValueError) as error:
            raise self._corrupt(f"a readable record {clip(record.filename)}", str(error)) from error
        if len(content) != record.file_size:
            raise self._corrupt(f"{record.file_size} bytes of {clip(record.filename)}", f"{len(content)} bytes")
        return np.frombuffer(content, np.uint8)

    def _corrupt(self, expected: str, found: str) -> CheckpointError:
        return CheckpointError(self.path, expected, found, DOWNLOAD_AGAIN)
