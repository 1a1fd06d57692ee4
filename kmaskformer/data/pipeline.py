"""From a reader to batches, as a `tf.data.Dataset`.

A reader is anything with `info`, `len(reader)` and `reader[index] -> structures.Sample` (NumPy). Which samples a
training batch holds and how they are augmented is a function of the seed and the batch's number alone: not of the
number of workers, and not of whether the run was interrupted.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
import tensorflow as tf

from kmaskformer.data import targets
from kmaskformer.data.arguments import refuse_negative, require_size
from kmaskformer.data.aspect_ratio import grouped_counters, is_tall
from kmaskformer.data.cache import DiskCache, MemoryCache
from kmaskformer.data.printable import printable
from kmaskformer.data.python_calls import call_here, call_offered, offer
from kmaskformer.data.service import Service, run_remotely, service_counters
from kmaskformer.data.skipping import SkippingReader, check_on_error
from kmaskformer.data.transforms import Transform, apply_transforms
from kmaskformer.data.wrapped_reader import has_overlaps
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
    cache: bool | str | Path = False,
    repeat: bool = True,
    first_batch: int = 0,
    workers: int = 0,
    batch_shapes: Sequence[tuple[int, int]] = (),
    on_error: str = "raise",
    shard: tuple[int, int] = (0, 1),
    service: Service | None = None,
    aspect_ratio_grouping: bool = False,
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
        cache: True keeps all decoded samples in memory, a folder keeps them there (see `cache.DiskCache`).
        repeat: Endless, without a break between epochs; `fit` then needs `steps_per_epoch`, which the returned dataset
            has as an attribute. Without it, one pass, whose last batch may be smaller.
        first_batch: Number of the batch to start with, to go on with an interrupted run: after n steps it is n.
        workers: Samples prepared in parallel; 0 lets TensorFlow choose.
        batch_shapes: Instead of `image_size`, several `(height, width)`: each batch is padded to the smallest that
            holds its images. A model compiled by XLA is compiled once for each.
        on_error: `"raise"` stops at a sample that cannot be read; `"skip"` takes the next one in its place and lists it
            in the dataset's `skipped`.
        shard: `(index, count)` of this process among several that share each batch of `batch_size`: it prepares its
            part of every batch and nothing else, so that their parts together are the batch of one process, if it has a
            fixed `image_size`: without, parts are padded to their own largest image. Use it in
            `strategy.distribute_datasets_from_function`.
        service: Where samples are read and augmented, if not here. They are the same, but come in another order.
        aspect_ratio_grouping: Whether batches are of wide or of tall images, as far as possible; see `aspect_ratio`.
            The reader must know the sizes, as those of COCO's files do.

    Returns:
        A dataset of `(ModelInputs, Targets)` with the attributes `dataset_info`, `steps_per_epoch` and, with
        `on_error="skip"`, `skipped`, a `SkippingReader`; its `report()` names the samples left out so far.

    Raises:
        ValueError: If the reader is empty, a number is negative, a size no pair of positive numbers, the batch size not
            positive or not a multiple of the number of shards, options exclude one another, or the reader does not know
            the sizes that grouping needs.
    """
    _check(reader, batch_size)
    refuse_negative(max_segments=max_segments, min_area=min_area, first_batch=first_batch, workers=workers)
    require_size(image_size=image_size, **{f"batch_shapes[{i}]": shape for i, shape in enumerate(batch_shapes)})
    _check_options(batch_size, image_size, batch_shapes, repeat, shard, on_error, service)
    _check_grouping(aspect_ratio_grouping, repeat, shuffle, service)
    parallel = workers or tf.data.AUTOTUNE
    # Over the cache: what is kept is each sample itself, never the one that takes its place.
    source = cached(reader, cache)
    source = SkippingReader(source) if on_error == "skip" else source
    load = _loader(source, has_overlaps(reader), service)

    def index_of(counter: tf.Tensor) -> tf.Tensor:
        return shuffled_index(counter, len(reader), seed) if shuffle else counter % len(reader)

    def prepare(counter: tf.Tensor) -> tuple[ModelInputs, Targets]:
        sample = apply_transforms(load(index_of(counter)), transforms, _element_seed(seed, counter))
        inputs, truth = targets.training_element(sample, min_area=min_area, max_segments=max_segments)
        return _require_fit(inputs, image_size), truth

    start = first_batch * (batch_size // shard[1])
    if aspect_ratio_grouping:
        counters = grouped_counters(is_tall(reader), index_of, batch_size, seed, first_batch, shard)
    elif service:
        counters = service_counters(len(reader), start, repeat)
    else:
        counters = _counters(len(reader), start, seed, repeat)
        if shard[1] > 1:
            counters = counters.map(lambda number: _sharded(number, batch_size, shard))
    elements = counters.map(prepare, num_parallel_calls=parallel, deterministic=True)
    elements = run_remotely(elements, service) if service else elements
    dataset = _batch(elements, batch_size // shard[1], image_size, max_segments, drop_remainder=repeat)
    if batch_shapes:
        dataset = dataset.map(lambda inputs, truth: _pad_to_one_of(inputs, truth, batch_shapes))
    dataset = _finish(dataset, reader.info, len(reader), batch_size, is_sharded=shard[1] > 1)
    dataset.skipped = source if on_error == "skip" else None
    return dataset


def evaluation_dataset(
    reader: Reader,
    shortest_edge: int = 0,
    longest_edge: int = 0,
    batch_size: int = 1,
    workers: int = 0,
    on_error: str = "raise",
) -> tf.data.Dataset:
    """Every sample once, in order, with its whole truth at the original size.

    Args:
        reader: The dataset.
        shortest_edge: The images' shorter side is resized to it; 0 keeps the original sizes.
        longest_edge: Bound of the longer side of resized images; 0 for none.
        batch_size: Images per batch; images of different sizes are padded to the largest (`image_sizes` tells).
        workers: Samples prepared in parallel; 0 lets TensorFlow choose.
        on_error: `"raise"` stops at a sample that cannot be read; `"skip"` leaves it out and lists it in the dataset's
            `skipped`.

    Returns:
        A dataset of `(ModelInputs, Targets)` with the attributes `dataset_info`, `steps_per_epoch` and, with
        `on_error="skip"`, `skipped`, a `SkippingReader`.

    Raises:
        ValueError: If the reader is empty, the batch size is not positive, another number negative, or `on_error`
            unknown.
    """
    _check(reader, batch_size)
    refuse_negative(shortest_edge=shortest_edge, longest_edge=longest_edge, workers=workers)
    check_on_error(on_error)
    source = SkippingReader(reader) if on_error == "skip" else reader
    load = _loader(source, has_overlaps(reader))

    def prepare(index: tf.Tensor) -> tuple[ModelInputs, Targets]:
        return targets.evaluation_element(load(index), shortest_edge=shortest_edge, longest_edge=longest_edge)

    indices = tf.data.Dataset.range(len(reader))
    if on_error == "skip":
        # Read once here to know, and once to use: a substitute would be counted twice.
        indices = indices.filter(lambda index: _can_be_read(source, index))
    elements = indices.map(prepare, num_parallel_calls=workers or tf.data.AUTOTUNE, deterministic=True)
    dataset = _finish(_batch(elements, batch_size), reader.info, len(reader), batch_size)
    dataset.skipped = source if on_error == "skip" else None
    return dataset


def _can_be_read(reader: SkippingReader, index: tf.Tensor) -> tf.Tensor:
    readable = call_here(lambda i: reader.get(int(i)) is not None, [index], tf.bool)
    return tf.ensure_shape(readable, ())


def cached(reader: Reader, cache: bool | str | Path) -> Reader:
    """The reader, which keeps its samples in memory (True), in a folder, or nowhere (False)."""
    if isinstance(cache, str | Path) and str(cache):
        return DiskCache(reader, cache)
    return MemoryCache(reader) if cache else reader


def _check(reader: Reader, batch_size: int) -> None:
    if len(reader) == 0:
        raise ValueError(f"The dataset '{reader.info.name}' is empty. Check its `root` and file patterns.")
    if batch_size < 1:
        raise ValueError(f"`batch_size` must be a positive integer. Received: batch_size={batch_size}.")


def _check_options(
    batch_size: int,
    image_size: tuple[int, int] | None,
    batch_shapes: Sequence[tuple[int, int]],
    repeat: bool,
    shard: tuple[int, int],
    on_error: str,
    service: Service | None,
) -> None:
    check_on_error(on_error)
    if image_size and batch_shapes:
        raise ValueError("Give `image_size` or `batch_shapes`, not both.")
    if service and (on_error == "skip" or shard[1] > 1):
        raise ValueError(
            "A `service` reads elsewhere: it can neither list what it skipped nor give each process its part. "
            f'Use on_error="raise" and no shards with it. Received: on_error={on_error!r}, shard={shard}.'
        )
    index, count = shard
    if not 0 <= index < count or batch_size % count or (count > 1 and not repeat):
        raise ValueError(
            "`shard` must be (index, count), index below count, `batch_size` a multiple of count, and `repeat` true. "
            f"Received: shard={shard}, batch_size={batch_size}, repeat={repeat}."
        )


def _check_grouping(grouping: bool, repeat: bool, shuffle: bool, service: Service | None) -> None:
    if grouping and (service or not repeat or not shuffle):
        raise ValueError("`aspect_ratio_grouping` needs `repeat`, `shuffle`, and batches made here: no `service`.")


def offer_reader(reader: Reader, name: str) -> None:
    """Lets pipelines of other processes, which were made for a service, read from `reader` in this one."""
    offer(name, _read_function(reader, _keys(has_overlaps(reader))))


def _keys(has_overlaps: bool) -> list[str]:
    return [key for key in _SAMPLE_TYPES if has_overlaps or key != "membership"]


def _read_function(reader: Reader, keys: Sequence[str]):
    def read(index: np.ndarray) -> list:
        try:
            sample = reader[int(index)]
        except (OSError, ValueError) as error:
            text = printable(str(error))
            if text == str(error):
                raise
            raise ValueError(text) from error  # TensorFlow would show nothing of a text that it cannot encode
        values = {**sample, "image_id": np.bytes_(printable(str(sample["image_id"])).encode())}
        return [values[key] for key in keys]

    return read


def _loader(reader: Reader, has_overlaps: bool = False, service: Service | None = None):
    """A function from an index tensor to a sample of tensors; Pillow and NumPy work outside Python's lock."""
    keys = _keys(has_overlaps)
    types = [_SAMPLE_TYPES[key] for key in keys]

    def load(index: tf.Tensor) -> Sample:
        if service is not None:
            values = call_offered(service.reader_name, [index], types)
        else:
            values = call_here(_read_function(reader, keys), [index], types)
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


def _sharded(number: tf.Tensor, batch_size: int, shard: tuple[int, int]) -> tf.Tensor:
    """Number of the element among those of all processes; a process has one part of each batch."""
    index, count = shard
    part = batch_size // count
    return number // part * batch_size + index * part + number % part


def shuffled_index(counter: tf.Tensor, count: int, seed: int) -> tf.Tensor:
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


def _pad_to_one_of(
    inputs: ModelInputs, truth: Targets, shapes: Sequence[tuple[int, int]]
) -> tuple[ModelInputs, Targets]:
    """The batch, padded to the first of `shapes`, in the order of their areas, that holds it."""
    shapes = tf.constant(sorted(shapes, key=lambda shape: shape[0] * shape[1]), tf.int32)
    size = tf.shape(inputs["images"])[1:3]
    fits = tf.reduce_all(shapes >= size, axis=1)
    message = "`batch_shapes` must hold a shape that is as large as the batch's images, padded to the largest"
    with tf.control_dependencies([tf.debugging.Assert(tf.reduce_any(fits), [message, size, shapes])]):
        margin = shapes[tf.argmax(tf.cast(fits, tf.int32))] - size
    grown = {"images": inputs["images"], **{key: truth[key] for key in ("segment_map", "masks") if key in truth}}
    for key, values in grown.items():
        first = 2 if key == "masks" else 1
        margins = [[0, 0]] * first + [[0, margin[0]], [0, margin[1]]] + [[0, 0]] * (values.shape.rank - first - 2)
        grown[key] = tf.pad(values, margins, constant_values=tf.constant(_PADDING[key], values.dtype))
    return {**inputs, "images": grown.pop("images")}, {**truth, **grown}


def _finish(
    dataset: tf.data.Dataset, info: DatasetInfo, count: int, batch_size: int, is_sharded: bool = False
) -> tf.data.Dataset:
    options = tf.data.Options()
    policy = tf.data.experimental.AutoShardPolicy
    # Samples come from a Python reader, so there are no files that several workers could share out; TensorFlow lets
    # each prepare all and keep its part, unless they are sharded already.
    options.experimental_distribute.auto_shard_policy = policy.OFF if is_sharded else policy.DATA
    options.deterministic = True
    dataset = dataset.prefetch(tf.data.AUTOTUNE).with_options(options)
    dataset.dataset_info = info
    dataset.steps_per_epoch = -(-count // batch_size)
    return dataset
