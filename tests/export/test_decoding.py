"""Decoding in the graph against the package's reader, which uses Pillow."""

from __future__ import annotations

import io

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
