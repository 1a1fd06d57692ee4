"""Resizing a part of an image: what resizing all and then cutting gives, for the work of the part.

Pillow resizes the image, bilinearly and averaging over the covered pixels when shrinking, as in the published recipes;
TensorFlow's own resize with antialiasing took three times as long.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import tensorflow as tf
from PIL import Image

from kmaskformer.data.python_calls import call_offered, offer
from kmaskformer.structures import Sample

Nearest = Literal["floor", "center"]
_RESIZE_WINDOW = "kmaskformer/resize_window"
_RESIZE_IMAGE = "kmaskformer/resize_image"
_CHOOSE_CORNER = "kmaskformer/choose_corner"


def resize_window(
    sample: Sample,
    size: tf.Tensor | tuple[int, int],
    window: tf.Tensor | tuple[int, int, int, int] | None = None,
    nearest: Nearest = "floor",
) -> Sample:
    """Resizes image and map to `size` and cuts out `window` of the result.

    Args:
        sample: The sample.
        size: `(height, width)` of the whole.
        window: `(top, left, height, width)` within the resized whole; all of it if None.
        nearest: Which pixel of the map a new pixel takes, as in `nearest_positions`.
    """
    size = tf.convert_to_tensor(size, tf.int32)
    window = tf.concat([[0, 0], size], 0) if window is None else tf.convert_to_tensor(window, tf.int32)
    image, segment_map = call_offered(
        _RESIZE_WINDOW, [sample["image"], sample["segment_map"], size, window, nearest], [tf.uint8, tf.int32]
    )
    shape = tf.get_static_value(window)
    height, width = (None, None) if shape is None else shape[2:]
    return {
        **sample,
        "image": tf.ensure_shape(image, (height, width, 3)),
        "segment_map": tf.ensure_shape(segment_map, (height, width)),
    }


def resize_image(image: tf.Tensor, size: tf.Tensor | tuple[int, int]) -> tf.Tensor:
    """Bilinear resize of a uint8 image `(height, width, 3)` to `(height, width)`, by Pillow."""
    size = tf.convert_to_tensor(size, tf.int32)
    window = tf.concat([[0, 0], size], 0)
    (resized,) = call_offered(_RESIZE_IMAGE, [image, size, window], [tf.uint8])
    shape = tf.get_static_value(size)
    return tf.ensure_shape(resized, (*((None, None) if shape is None else shape), 3))


def choose_corner(
    sample: Sample,
    size: tf.Tensor,
    window_size: tf.Tensor,
    corners: tf.Tensor,
    largest_class: float,
    nearest: Nearest = "floor",
) -> tf.Tensor:
    """The first of `corners` `(places, 2)` whose window no class fills; the last where there is none.

    A class fills a window that has `largest_class` or more of the labelled pixels in it, or all of them.
    """

    labels = sample["labels"]
    if "membership" in sample:  # the map holds regions: the class of the first segment that a region is in
        members = tf.pad(tf.cast(sample["membership"], tf.uint8), [[0, 1], [0, 0]])  # argmax wants a row at least
        first = tf.argmax(members, axis=0, output_type=tf.int32)
        labels = tf.gather(tf.pad(labels, [[0, 1]]), first)

    share = tf.constant(largest_class, tf.float64)  # in float32 0.6 is more than six tenths
    inputs = [sample["segment_map"], labels, size, window_size, corners, share, nearest]
    (corner,) = call_offered(_CHOOSE_CORNER, inputs, [tf.int32])
    return tf.ensure_shape(corner, (2,))


def nearest_positions(length: int, new_length: int, start: int, count: int, nearest: Nearest) -> np.ndarray:
    """The old pixel that each of `count` new pixels from `start` on takes, when `length` becomes `new_length`.

    `floor` is PyTorch's (`floor(position * scale)` in float32: halving 0..7 gives 0 2 4 6), which the published
    semantic recipes use; `center` is Pillow's (1 3 5 7), which the panoptic ones use.
    """
    if nearest == "center":
        # Added up step by step, as Pillow does: the rounding decides where a middle falls between two pixels.
        steps = np.full(start + count, length / new_length)
        steps[:1] /= 2
        positions = np.cumsum(steps)[start:]
    else:
        positions = np.arange(start, start + count).astype(np.float32) * (np.float32(length) / np.float32(new_length))
    return np.minimum(positions.astype(np.int64), length - 1)


def _resize_window(
    image: np.ndarray, segment_map: np.ndarray, size: np.ndarray, window: np.ndarray, nearest: bytes
) -> tuple[np.ndarray, np.ndarray]:
    rows, columns = (
        nearest_positions(old, int(new), int(start), int(count), nearest.decode())
        for old, new, start, count in zip(segment_map.shape, size, window[:2], window[2:], strict=True)
    )
    # Whole rows first: they are copied as blocks.
    return _resize_image(image, size, window), segment_map[rows].take(columns, axis=1)


def _resize_image(image: np.ndarray, size: np.ndarray, window: np.ndarray) -> np.ndarray:
    top, left, height, width = (int(number) for number in window)
    row_scale, column_scale = (old / int(new) for old, new in zip(image.shape, size, strict=False))
    if (row_scale, column_scale) == (1.0, 1.0):
        return image[top : top + height, left : left + width]
    box = (left * column_scale, top * row_scale, (left + width) * column_scale, (top + height) * row_scale)
    # Rounding must not carry the box beyond the image, which Pillow refuses.
    box = (*box[:2], min(box[2], image.shape[1]), min(box[3], image.shape[0]))
    picture = Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR, box=box)
    return np.asarray(picture)


def _choose_corner(
    segment_map: np.ndarray,
    labels: np.ndarray,
    size: np.ndarray,
    window_size: np.ndarray,
    corners: np.ndarray,
    largest_class: np.ndarray,
    nearest: bytes,
) -> np.ndarray:
    classes = np.append(labels, 0)  # the entry that VOID reads; such pixels are not counted
    for corner in corners:
        rows, columns = (
            nearest_positions(old, int(new), int(start), int(count), nearest.decode())
            for old, new, start, count in zip(segment_map.shape, size, corner, window_size, strict=True)
        )
        window = segment_map[rows].take(columns, axis=1)
        areas = np.bincount(classes[window[window >= 0]])
        if np.count_nonzero(areas) > 1 and areas.max() < areas.sum() * largest_class:
            return corner
    return corners[-1]


offer(_RESIZE_WINDOW, _resize_window)
offer(_RESIZE_IMAGE, _resize_image)
offer(_CHOOSE_CORNER, _choose_corner)
