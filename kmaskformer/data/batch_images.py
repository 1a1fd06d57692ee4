"""Which images a training batch was made of, to be told when something is wrong with it."""

from __future__ import annotations

import tensorflow as tf

from kmaskformer.data.aspect_ratio import WINDOW, is_tall, window_batches
from kmaskformer.data.pipeline import Reader, shuffled_index
from kmaskformer.data.printable import printable
from kmaskformer.data.skipping import SkippingReader
from kmaskformer.data.wrapped_reader import files_of


def batch_images(
    reader: Reader, batch: int, batch_size: int, seed: int = 0, aspect_ratio_grouping: bool = False
) -> list[str]:
    """The images of a shuffled training batch, which its number and the seed decide.

    Args:
        reader: The dataset, or the `SkippingReader` around it that the batches come from.
        batch: Number of the batch since the start of the run, from 0.
        batch_size: Images of a batch.
        seed: Seed of the order, as given to `training_dataset`.
        aspect_ratio_grouping: As given to `training_dataset`.

    Returns:
        Paths of the image files where the reader has `files(index)`, else image ids.
    """

    def index_of(counter: tf.Tensor) -> tf.Tensor:
        return shuffled_index(counter, len(reader), seed)

    counters = tf.range(batch * batch_size, (batch + 1) * batch_size, dtype=tf.int64)
    if aspect_ratio_grouping:
        window = tf.constant(batch // WINDOW, tf.int64)
        counters = window_batches(window, is_tall(reader), index_of, batch_size, seed)[batch % WINDOW]
    return [_name(reader, int(index_of(counter))) for counter in counters]


def _name(reader: Reader, index: int) -> str:
    if isinstance(reader, SkippingReader):
        index = reader.given_index(index)
    files = files_of(reader, index)
    if files:
        return printable(str(files[0]))
    return printable(str(reader[index]["image_id"]))
