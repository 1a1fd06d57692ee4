"""Batches of images that are all wide or all tall, which need less padding than mixed ones."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf

from kmaskformer.data.wrapped_reader import image_size_of

WINDOW = 32
"""Batches among which images are exchanged; one of them may be mixed."""


def is_tall(reader: Any) -> np.ndarray:
    """Whether each image of a reader is taller than wide, `(samples,)` bool.

    Raises:
        ValueError: If the reader does not know the sizes of its images without reading them.
    """
    sizes = [image_size_of(reader, index) for index in range(len(reader))]
    unknown = [index for index, size in enumerate(sizes) if size is None]
    if unknown:
        raise ValueError(
            "`aspect_ratio_grouping` needs the `height` and `width` that COCO's JSON files state for every image. "
            f"'{reader.info.name}' does not know them of {len(unknown)} of {len(sizes)} images, the first is number "
            f"{unknown[0]}. Complete the file, or switch the grouping off."
        )
    return np.asarray([height > width for height, width in sizes], bool)


def grouped_counters(
    tall: np.ndarray,
    index_of: Callable[[tf.Tensor], tf.Tensor],
    batch_size: int,
    seed: int,
    first_batch: int = 0,
    shard: tuple[int, int] = (0, 1),
) -> tf.data.Dataset:
    """Running numbers of the elements, endless, in an order that brings images of one kind into one batch.

    The reference fills two buckets as images come. Here each `WINDOW` of batches has its images sorted into wide and
    tall ones and its batches shuffled, so that a batch remains a function of the seed and its number: a run goes on
    anywhere without knowing what came before.

    Args:
        tall: `is_tall` of the reader.
        index_of: From an element's number to that of its sample.
        batch_size: Images of a batch, over all shards.
        seed: Decides the order of the batches within a window.
        first_batch: Number of the batch to start with.
        shard: `(index, count)`: the part of each batch that is wanted.

    Returns:
        A dataset of scalar int64; so many as a part of a batch has make up one.
    """
    index, count = shard
    part = batch_size // count
    windows = tf.data.Dataset.counter(first_batch // WINDOW)
    batches = windows.map(lambda number: window_batches(number, tall, index_of, batch_size, seed)).unbatch()
    return batches.skip(first_batch % WINDOW).map(lambda batch: batch[index * part : (index + 1) * part]).unbatch()


def window_batches(
    window: tf.Tensor, tall: np.ndarray, index_of: Callable[[tf.Tensor], tf.Tensor], batch_size: int, seed: int
) -> tf.Tensor:
    """`(WINDOW, batch_size)` int64 numbers of the elements of each batch of a window (scalar int64)."""
    size = WINDOW * batch_size
    counters = window * size + tf.range(size, dtype=tf.int64)
    indices = tf.map_fn(index_of, counters)
    order = tf.argsort(tf.cast(tf.gather(tf.constant(tall), indices), tf.int32), stable=True)
    batches = tf.reshape(tf.gather(counters, order), (WINDOW, batch_size))
    key = tf.random.experimental.stateless_fold_in(tf.constant([seed, 2], tf.int32), window)
    places = tf.argsort(tf.random.stateless_uniform((WINDOW,), key))
    return tf.gather(batches, places)
