"""Zip archives as memory."""

from __future__ import annotations

import zipfile

import numpy as np
import pytest

from kmaskformer.checkpoints.errors import CheckpointError
from kmaskformer.checkpoints.mapped_archive import MappedArchive
from kmaskformer.checkpoints.mapped_file import map_file

DATA = bytes(range(256)) * 4


@pytest.fixture()
def save(tmp_path):
    def call(compression=zipfile.ZIP_STORED, **records):
        path = tmp_path / "a.zip"
        with zipfile.ZipFile(path, "w", compression) as archive:
            for name, data in records.items():
                archive.writestr(name, data)
        return path

    return call


def open_archive(path):
    return MappedArchive(path, map_file(path))


def test_stored_records_are_views_and_deflated_ones_copies(save, written):
    for compression, is_view in [(zipfile.ZIP_STORED, True), (zipfile.ZIP_DEFLATED, False)]:
        archive = open_archive(save(compression, first=b"x", second=DATA, empty=b""))
        record = archive.read("second")
        assert record.tobytes() == DATA
        assert written.is_view_of_file(record) == is_view
        assert archive.read("empty").size == 0
        assert "second" in archive
        assert "third" not in archive


def test_missing_record(save):
    with pytest.raises(CheckpointError, match=r"a\.zip: expected a record 'b'\. Found: 1 others"):
        open_archive(save(a=b"")).read("b")


def test_checksum(save):
    path = save(a=DATA)
    content = bytearray(path.read_bytes())
    content[content.index(DATA) + 5] ^= 1
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"expected 'a' with checksum [0-9a-f]{8}\. Found: another checksum"):
        open_archive(path).read("a")


def test_checksum_of_deflated_record(save):
    path = save(zipfile.ZIP_DEFLATED, a=DATA)
    content = bytearray(path.read_bytes())
    content[60] ^= 0xFF
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match="a readable record 'a'"):
        open_archive(path).read("a")


def test_two_records_of_one_name(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive, pytest.warns(UserWarning, match="Duplicate"):
        archive.writestr("a", b"1")
        archive.writestr("a", b"2")
    with pytest.raises(CheckpointError, match="two records of one name"):
        open_archive(tmp_path / "a.zip")


def test_bombs_are_refused_before_they_are_unpacked(save):
    path = save(zipfile.ZIP_DEFLATED, a=bytes(50_000_000))
    assert path.stat().st_size < 60_000
    with pytest.raises(CheckpointError, match=r"contents of 50000000 bytes in a file of .*Weights do not compress"):
        open_archive(path)


def test_declared_size_below_the_true_one(save):
    path = save(zipfile.ZIP_DEFLATED, a=bytes(50_000_000))
    content = bytearray(path.read_bytes())
    directory = content.rindex(b"PK\x01\x02")
    content[directory + 24 : directory + 28] = (1000).to_bytes(4, "little")
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match="a readable record 'a'"):
        open_archive(path).read("a")


@pytest.mark.parametrize(
    ("offset", "value", "found"),
    [
        (10, 12, "stored or deflated"),
        (10, 14, "stored or deflated"),
        (8, 1, "stored or deflated"),
        (42, 7, "the header of 'a' at byte 7"),
        (42, 2**31, "the header of 'a' at byte"),
        (24, 1025, "1025 bytes of 'a'"),
        (24, 10**7, "10000000 bytes of 'a'"),
    ],
)
def test_directories_that_lie(offset, value, found, save):
    path = save(a=DATA)
    content = bytearray(path.read_bytes())
    start = content.rindex(b"PK\x01\x02") + offset
    width = 4 if offset > 20 else 2
    content[start : start + width] = value.to_bytes(width, "little")
    path.write_bytes(content)
    with pytest.raises(CheckpointError) as caught:
        open_archive(path).read("a")
    assert found in str(caught.value) or "a complete zip archive" in str(caught.value)


def test_truncated(save):
    path = save(a=DATA)
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(CheckpointError, match=r"expected a complete zip archive\. Found: File is not a zip file"):
        open_archive(path)


def test_empty_file(tmp_path):
    (tmp_path / "a").write_bytes(b"")
    with pytest.raises(CheckpointError, match="an empty file"):
        map_file(tmp_path / "a")


def test_view_keeps_the_file_open(save, tmp_path):
    path = save(a=DATA)
    record = open_archive(path).read("a")
    path.unlink()
    np.testing.assert_array_equal(record, np.frombuffer(DATA, np.uint8))
