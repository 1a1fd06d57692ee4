"""JPEG and PNG bytes to upright RGB pixels with TensorFlow operations, as `data.images.read_image` does with Pillow."""

from __future__ import annotations

import tensorflow as tf

EXIF_MARKER = (0xFF, 0xE1, None, None, *b"Exif\0\0")
"""How the segment of a JPEG file begins that holds its EXIF data; two bytes of length are unknown."""

EXIF_REACH = 1 << 17
ORIENTATION_TAG = 0x0112


def decode_image(contents: tf.Tensor) -> tf.Tensor:
    """An image as people see it in a viewer.

    Grey and palette images become RGB, alpha is dropped, and the EXIF orientation of a JPEG is applied. Of 16 bits the
    upper 8 are kept.

    Args:
        contents: Scalar string, the bytes of a JPEG or PNG file.

    Returns:
        `(height, width, 3)` uint8.
    """
    # The kernel reads PNG as well; this is the accurate transform, which Pillow uses too.
    image = tf.io.decode_jpeg(contents, channels=3, dct_method="INTEGER_ACCURATE")
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
    """Orientation, 1..8, that a JPEG file states; 1 where it states none.

    Args:
        contents: Scalar string, the bytes of the file.
    """
    head = tf.cast(tf.io.decode_raw(tf.strings.substr(contents, 0, EXIF_REACH), tf.uint8), tf.int64)
    count = tf.maximum(tf.size(head) - len(EXIF_MARKER) + 1, 0)
    matches = tf.fill([count], True)
    for offset, byte in enumerate(EXIF_MARKER):
        if byte is not None:
            matches &= head[offset : offset + count] == byte
    places = tf.where(matches)[:, 0]
    return tf.cond(
        tf.size(places) > 0,
        lambda: _orientation_of_tiff(head[places[0] + len(EXIF_MARKER) :]),
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
