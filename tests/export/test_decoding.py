"""Decoding in the graph against the package's reader, which uses Pillow."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
import pytest
import tensorflow as tf
from PIL import ExifTags, Image

from kmaskformer.data.images import read_image
from kmaskformer.export.decoding import decode_image, exif_orientation


def encode(image: Image.Image, file_format: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, file_format, **options)
    return buffer.getvalue()


def check(contents: bytes) -> None:
    np.testing.assert_array_equal(decode_image(tf.constant(contents)), read_image(contents))


@pytest.mark.parametrize("subsampling", [0, 1, 2])
def test_jpeg_equals_pillow(scene, subsampling):
    image = Image.fromarray(scene(61, 83))
    check(encode(image, "JPEG", quality=80, subsampling=subsampling))
    check(encode(image, "JPEG", quality=80, subsampling=subsampling, progressive=True))


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "P", "1", "LA"])
def test_png_equals_pillow(scene, mode):
    check(encode(Image.fromarray(scene(20, 31)).convert(mode), "PNG"))


@pytest.mark.parametrize("high", [200, 255, 256, 4095, 4096, 65535])
def test_grey_of_16_bits(rng, high):
    grey = rng.integers(0, high, (20, 31), dtype=np.uint16)
    grey[0, 0] = high
    contents = encode(Image.fromarray(grey), "PNG")
    assert contents[24:26] == b"\x10\x00", "the test should write 16 bits"
    check(contents)


def test_colors_of_16_bits(rng):
    """Pillow cannot write them; this is a PNG file by hand."""
    check(write_png(rng.integers(0, 65536, (9, 13, 3), dtype=np.uint16), color_type=2))
    check(write_png(rng.integers(0, 65536, (9, 13, 4), dtype=np.uint16), color_type=6))
    check(write_png(rng.integers(0, 65536, (9, 13, 2), dtype=np.uint16), color_type=4))


def write_png(pixels, color_type):
    height, width = pixels.shape[:2]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)
    header = struct.pack(">IIBBBBB", width, height, 16, color_type, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b""))
    packed = (
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body)) for kind, body in chunks
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(packed)


def test_orientation_of_a_png(scene):
    for mode in ("RGB", "L"):
        for orientation in (1, 3, 6):
            exif = Image.Exif()
            exif[ExifTags.Base.Orientation] = orientation
            contents = encode(Image.fromarray(scene(24, 40)).convert(mode), "PNG", exif=exif)
            assert int(exif_orientation(tf.constant(contents))) == orientation
            check(contents)


def test_grey_jpeg(scene):
    check(encode(Image.fromarray(scene(20, 31)).convert("L"), "JPEG"))


@pytest.mark.parametrize("endian", ["<", ">"])
def test_every_orientation_comes_out_upright(scene, endian):
    image = Image.fromarray(scene(24, 40))
    for orientation in range(1, 9):
        exif = Image.Exif()
        exif.endian = endian
        exif[ExifTags.Base.Make] = "a camera"
        exif[ExifTags.Base.Orientation] = orientation
        exif[ExifTags.Base.Software] = "something"
        contents = encode(image, "JPEG", exif=exif)
        assert int(exif_orientation(tf.constant(contents))) == orientation
        check(contents)


def test_damaged_exif_data_counts_as_none(scene, rng):
    contents = encode(Image.fromarray(scene(16, 16)), "JPEG", exif=b"Exif\0\0MM\0*\xff\xff\xff\xff\xff\xff")
    assert int(exif_orientation(tf.constant(contents))) == 1
    marker = bytes((0xFF, 0xE1, 0, 20)) + b"Exif\0\0"
    for length in (0, 1, 8, 9, 300):
        noise = rng.integers(0, 256, length, np.uint8).tobytes()
        assert 1 <= int(exif_orientation(tf.constant(b"\xff\xd8" + marker + noise))) <= 8
    assert int(exif_orientation(tf.constant(b""))) == 1


@pytest.mark.parametrize("contents", [b"no image", b"", b"\xff\xd8\xff\xe0 broken"])
def test_what_is_no_image_is_an_error(contents):
    with pytest.raises(tf.errors.InvalidArgumentError):
        decode_image(tf.constant(contents))
