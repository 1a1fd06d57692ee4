"""JPEG and PNG bytes to upright RGB pixels with TensorFlow operations, as `data.images.read_image` does with Pillow."""

from __future__ import annotations

import tensorflow as tf

EXIF_MARKER = (0xFF, 0xE1, None, None, *b"Exif\0\0")
"""How the segment of a JPEG file begins that holds its EXIF data; two bytes of length are unknown."""

PNG_EXIF_MARKER = tuple(b"eXIf")
"""Name of the chunk of a PNG file that holds its EXIF data."""

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
PNG_DEPTH_AT = 24
"""Where a PNG file states its bits per channel and, one byte on, its kind of colours."""

DEEP_GREY = b"\x10\x00"
"""16 bits, one channel of grey."""

EXIF_REACH = 1 << 17
ORIENTATION_TAG = 0x0112


def decode_image(contents: tf.Tensor) -> tf.Tensor:
    """An image as people see it in a viewer.

    Grey and palette images become RGB, alpha is dropped, and the EXIF orientation is applied. 16-bit grey is brought to
    8 bits as `read_image` does; of 16-bit colours the upper 8 bits are kept, as there.

    Args:
        contents: Scalar string, the bytes of a JPEG or PNG file.

    Returns:
        `(height, width, 3)` uint8.
    """
    image = tf.cond(
        _is_png(contents) & (_header(contents, PNG_DEPTH_AT, len(DEEP_GREY)) == DEEP_GREY),
        lambda: _decode_deep_grey(contents),
        # The kernel reads PNG as well; this is the accurate transform, which Pillow uses too.
        lambda: tf.io.decode_jpeg(contents, channels=3, dct_method="INTEGER_ACCURATE"),
    )
    return apply_orientation(image, exif_orientation(contents))


def apply_orientation(image: tf.Tensor, orientation: tf.Tensor) -> tf.Tensor:
    """Turns an image upright.

    Args:
        image: `(height, width, 3)`.
        orientation: Scalar int, 1..8, the value of the EXIF tag.
    """
    image = tf.cond(orientation >= 5, lambda: tf.transpose(image, (1, 0, 2)), lambda: image)
    mirrored = _is_one_of(orientation, (2, 3, 6, 7))
    image = tf.cond(mirrored, lambda: tf.reverse(image, (1,)), lambda: image)
    upside_down = _is_one_of(orientation, (3, 4, 7, 8))
    return tf.cond(upside_down, lambda: tf.reverse(image, (0,)), lambda: image)


def exif_orientation(contents: tf.Tensor) -> tf.Tensor:
    """Orientation, 1..8, that a JPEG or PNG file states in its first 128 KiB; 1 where it states none.

    Args:
        contents: Scalar string, the bytes of the file.
    """
    head = tf.cast(tf.io.decode_raw(tf.strings.substr(contents, 0, EXIF_REACH), tf.uint8), tf.int64)
    return tf.cond(
        _is_png(contents),
        lambda: _orientation_after(head, PNG_EXIF_MARKER),
        lambda: _orientation_after(head, EXIF_MARKER),
    )


def _is_png(contents: tf.Tensor) -> tf.Tensor:
    return _header(contents, 0, len(PNG_SIGNATURE)) == PNG_SIGNATURE


def _header(contents: tf.Tensor, start: int, length: int) -> tf.Tensor:
    """Bytes from the beginning of a file, which may be shorter."""
    padded = tf.strings.join([tf.strings.substr(contents, 0, start + length), "\0" * (start + length)])
    return tf.strings.substr(padded, start, length)


def _decode_deep_grey(contents: tf.Tensor) -> tf.Tensor:
    """16-bit grey as RGB: values up to 255 are kept, up to 4095 are taken for 12 bits, all others for 16."""
    grey = tf.cast(tf.io.decode_png(contents, channels=1, dtype=tf.uint16), tf.float32)
    high = tf.reduce_max(grey)
    full = tf.where(high <= 255, 255.0, tf.where(high <= 4095, 4095.0, 65535.0))
    return tf.repeat(tf.cast(tf.round(grey * (255.0 / full)), tf.uint8), 3, axis=-1)


def _orientation_after(head: tf.Tensor, marker: tuple[int | None, ...]) -> tf.Tensor:
    """Orientation in the EXIF data behind the first place of a marker; 1 where there is none."""
    count = tf.maximum(tf.size(head) - len(marker) + 1, 0)
    matches = tf.fill([count], True)
    for offset, byte in enumerate(marker):
        if byte is not None:
            matches &= head[offset : offset + count] == byte
    places = tf.where(matches)[:, 0]
    return tf.cond(
        tf.size(places) > 0,
        lambda: _orientation_of_tiff(head[places[0] + len(marker) :]),
        lambda: tf.constant(1, tf.int64),
    )


def _orientation_of_tiff(tiff: tf.Tensor) -> tf.Tensor:
    """The tag in the first directory of EXIF data; damaged data never leads outside of it."""
    tiff = tf.concat([tiff, tf.zeros([16], tf.int64)], axis=0)
    little_endian = tiff[0] == ord("I")
    directory = _number(tiff, tf.constant(4, tf.int64), 4, little_endian)
    entries = directory + 2 + 12 * tf.range(_number(tiff, directory, 2, little_endian))
    tags = _number(tiff, entries, 2, little_endian)
    values = _number(tiff, entries + 8, 2, little_endian)
    found = tf.boolean_mask(values, (tags == ORIENTATION_TAG) & (values >= 1) & (values <= 8))
    return tf.concat([found, tf.ones([1], tf.int64)], axis=0)[0]


def _number(data: tf.Tensor, places: tf.Tensor, length: int, little_endian: tf.Tensor) -> tf.Tensor:
    """Unsigned numbers of `length` bytes at the given places."""
    last = tf.size(data, tf.int64) - 1
    read = [tf.gather(data, tf.clip_by_value(places + i, 0, last)) for i in range(length)]
    little = sum(byte * 256**i for i, byte in enumerate(read))
    big = sum(byte * 256**i for i, byte in enumerate(reversed(read)))
    return tf.where(little_endian, little, big)


def _is_one_of(value: tf.Tensor, choices: tuple[int, ...]) -> tf.Tensor:
    return tf.reduce_any(value == tf.constant(choices, value.dtype))
