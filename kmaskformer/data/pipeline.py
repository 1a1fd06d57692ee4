"""From a reader to batches, as a `tf.data.Dataset`.

A reader is anything with `info`, `len(reader)` and `reader[index] -> structures.Sample` (NumPy). Which samples a
training batch holds and how they are augmented is a function of the seed and the batch's number alone: not of the
number of workers, and not of whether the run was interrupted.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import tensorflow as tf

from kmaskformer.data import targets
from kmaskformer.data.transforms import Transform, apply_transforms
from kmaskformer.structures import VOID, DatasetInfo, ModelInputs, Sample, Targets

_SAMPLE_TYPES = {
    "image": tf.uint8,
    "segment_map": tf.int32,
    "labels": tf.int32,
    "is_crowd": tf.bool,
    "image_id": tf.string,
    "membership": tf.bool,
}
_SAMPLE_SHAPES = {
    "image": (None, None, 3),
    "segment_map": (None, None),
    "labels": (None,),
    "is_crowd": (None,),
    "image_id": (),
    "membership": (None, None),
}
_PADDING = {
    "images": np.uint8(0),
    "image_sizes": np.int32(0),
    "segment_map": np.int32(VOID),
    "labels": np.int32(0),
    "valid": False,
    "is_crowd": False,
    "image_id": "",
    "original_size": np.int32(0),
    "membership": False,
    "masks": False,
}


class Reader(Protocol):
    """What a dataset family offers.

    A reader with a true attribute `has_overlaps` delivers samples with `membership`.
    """

    info: DatasetInfo

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Sample: ...


def training_dataset(
    reader: Reader,
    transforms: Sequence[Transform] = (),
    batch_size: int = 1,
    image_size: tuple[int, int] | None = None,
    max_segments: int = 0,
    min_area: int = 1,
    shuffle: bool = True,
    seed: int = 0,
    cache: bool = False,
    repeat: bool = True,
    first_batch: int = 0,
    workers: int = 0,
) -> tf.data.Dataset:
    """Batches to learn from.

    Args:
        reader: The dataset.
        transforms: Augmentations, in order; see `data.transforms`.
        batch_size: Images per batch.
        image_size: `(height, width)` of every batch; no image may be larger after the transforms. By default each
            batch is as large as its largest image. A fixed size is needed for `jit_compile=True`.
        max_segments: Rows of every segment table (of more segments, the largest are kept); 0 for as many as the batch
            needs. A fixed number is needed for `jit_compile=True`.
        min_area: Segments of fewer pixels after the transforms are dropped; 0 keeps even empty ones.
        shuffle: Whether each epoch has an order of its own.
        seed: Decides orders and augmentations.
        cache: Keeps all decoded samples in memory.
        repeat: Endless, without a break between epochs; `fit` then needs `steps_per_epoch`, which the returned dataset
            has as an attribute. Without it, one pass, whose last batch may be smaller.
        first_batch: Number of the batch to start with, to go on with an interrupted run.
        workers: Samples prepared in parallel; 0 lets TensorFlow choose.

    Returns:
        A dataset of `(ModelInputs, Targets)` with the attributes `dataset_info` and `steps_per_epoch`.

    Raises:
        ValueError: If the reader is empty or the batch size is not positive.
    """
    _check(reader, batch_size)
    parallel = workers or tf.data.AUTOTUNE
    load = _loader(_Cached(reader) if cache else reader, _has_overlaps(reader))

    def prepare(counter: tf.Tensor) -> tuple[ModelInputs, Targets]:
        index = _shuffled_index(counter, len(reader), seed) if shuffle else counter % len(reader)
        sample = apply_transforms(load(index), transforms, _element_seed(seed, counter))
        inputs, truth = targets.training_element(sample, min_area=min_area, max_segments=max_segments)
        return _require_fit(inputs, image_size), truth

    counters = _counters(len(reader), first_batch * batch_size, seed, repeat)
    elements = counters.map(prepare, num_parallel_calls=parallel, deterministic=True)
    dataset = _batch(elements, batch_size, image_size, max_segments, drop_remainder=repeat)
    return _finish(dataset, reader.info, len(reader), batch_size)


def evaluation_dataset(
    reader: Reader, shortest_edge: int = 0, longest_edge: int = 0, batch_size: int = 1, workers: int = 0
) -> tf.data.Dataset:
    """Every sample once, in order, with its whole truth at the original size.

    Args:
        reader: The dataset.
        shortest_edge: The images' shorter side is resized to it; 0 keeps the original sizes.
        longest_edge: Bound of the longer side; 0 for none.
        batch_size: Images per batch; images of different sizes are padded to the largest (`image_sizes` tells).
        workers: Samples prepared in parallel; 0 lets TensorFlow choose.

    Returns:
        A dataset of `(ModelInputs, Targets)` with the attributes `dataset_info` and `steps_per_epoch`.

    Raises:
        ValueError: If the reader is empty or the batch size is not positive.
    """
    _check(reader, batch_size)
    load = _loader(reader, _has_overlaps(reader))

    def prepare(index: tf.Tensor) -> tuple[ModelInputs, Targets]:
        return targets.evaluation_element(load(index), shortest_edge=shortest_edge, longest_edge=longest_edge)

    indices = tf.data.Dataset.range(len(reader))
    elements = indices.map(prepare, num_parallel_calls=workers or tf.data.AUTOTUNE, deterministic=True)
    return _finish(_batch(elements, batch_size), reader.info, len(reader), batch_size)


class _Cached:
    """A reader that reads each sample once."""

    def __init__(self, reader: Reader) -> None:
        self._reader = reader
        self._samples: dict[int, Sample] = {}

    def __getitem__(self, index: int) -> Sample:
        if index not in self._samples:
            self._samples[index] = self._reader[index]
        return self._samples[index]


def _check(reader: Reader, batch_size: int) -> None:
    if len(reader) == 0:
        raise ValueError(f"The dataset '{reader.info.name}' is empty. Check its `root` and file patterns.")
    if batch_size < 1:
        raise ValueError(f"`batch_size` must be a positive integer. Received: batch_size={batch_size}.")


def _has_overlaps(reader: Reader) -> bool:
    return getattr(reader, "has_overlaps", False)


def _loader(reader: Reader, has_overlaps: bool = False):
    """A function from an index tensor to a sample of tensors; Pillow and NumPy work outside Python's lock."""
    keys = [key for key in _SAMPLE_TYPES if has_overlaps or key != "membership"]

    def read(index: np.ndarray) -> list:
        sample = reader[int(index)]
        values = {**sample, "image_id": np.bytes_(str(sample["image_id"]).encode())}
        return [values[key] for key in keys]

    def load(index: tf.Tensor) -> Sample:
        values = tf.numpy_function(read, [index], [_SAMPLE_TYPES[key] for key in keys], stateful=False)
        sample = dict(zip(keys, values, strict=True))
        for key in keys:
            sample[key].set_shape(_SAMPLE_SHAPES[key])
        return sample

    return load


def _counters(count: int, start: int, seed: int, repeat: bool) -> tf.data.Dataset:
    """Running numbers of the elements: `epoch * count + position`."""
    if repeat:
        return tf.data.Dataset.counter(start)
    # A finite dataset is iterated anew for each epoch: a random epoch number gives each pass its own order.
    epochs = tf.data.Dataset.random(seed=seed, rerandomize_each_iteration=True).take(1)
    passes = epochs.flat_map(lambda epoch: tf.data.Dataset.range(epoch * count + start, (epoch + 1) * count))
    return passes.apply(tf.data.experimental.assert_cardinality(max(0, count - start)))


def _shuffled_index(counter: tf.Tensor, count: int, seed: int) -> tf.Tensor:
    """The sample of this element: every epoch is a permutation, computed and not stored."""
    key = tf.random.experimental.stateless_fold_in(tf.constant([seed, 1], tf.int32), counter // count)
    return tf.random.experimental.index_shuffle(counter % count, key, tf.constant(count - 1, tf.int64))


def _element_seed(seed: int, counter: tf.Tensor) -> tf.Tensor:
    return tf.random.experimental.stateless_fold_in(tf.constant([seed, 0], tf.int32), counter)


def _require_fit(inputs: ModelInputs, image_size: tuple[int, int] | None) -> ModelInputs:
    """The inputs, if the image is not larger than the batch."""
    if image_size is None:
        return inputs
    message = (
        f"images must fit into `image_size`, (height, width) = {tuple(image_size)}, after the transforms. "
        "Add a crop of that size to the transforms."
    )
    with tf.control_dependencies([tf.debugging.assert_less_equal(inputs["image_sizes"], image_size, message)]):
        return {**inputs, "images": tf.identity(inputs["images"])}


def _batch(
    elements: tf.data.Dataset,
    batch_size: int,
    image_size: tuple[int, int] | None = None,
    max_segments: int = 0,
    drop_remainder: bool = False,
) -> tf.data.Dataset:
    """Padded batches; `image_size` and `max_segments` fix their shapes."""
    input_spec, target_spec = elements.element_spec
    shapes = {key: spec.shape for key, spec in (input_spec | target_spec).items()}
    if image_size:
        shapes |= {"images": (*image_size, 3), "segment_map": image_size}
    if max_segments:
        shapes |= {"labels": (max_segments,), "valid": (max_segments,)}
    shapes["masks"] = (max_segments or None, *(image_size or (None, None)))
    padded_shapes = tuple({key: shapes[key] for key in spec} for spec in (input_spec, target_spec))
    padding = tuple({key: _PADDING[key] for key in spec} for spec in (input_spec, target_spec))
    return elements.padded_batch(batch_size, padded_shapes, padding, drop_remainder=drop_remainder)


def _finish(dataset: tf.data.Dataset, info: DatasetInfo, count: int, batch_size: int) -> tf.data.Dataset:
    options = tf.data.Options()
    # Samples come from a Python reader, so there are no files that several workers could share out.
    options.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.DATA
    options.deterministic = True
    dataset = dataset.prefetch(tf.data.AUTOTUNE).with_options(options)
    dataset.dataset_info = info
    dataset.steps_per_epoch = -(-count // batch_size)
    return dataset
