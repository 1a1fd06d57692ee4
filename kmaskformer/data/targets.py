"""A sample as a model's inputs and targets."""

from __future__ import annotations

import tensorflow as tf

from kmaskformer.data import transforms, windows
from kmaskformer.structures import VOID, ModelInputs, Sample, Targets

_TABLES = ("labels", "is_crowd", "membership")
"""Parts of a sample with one row per segment."""


def training_element(sample: Sample, *, min_area: int = 1, max_segments: int = 0) -> tuple[ModelInputs, Targets]:
    """Inputs and targets to learn from, without a batch dimension.

    Crowds leave the table and their pixels become void: a region of many objects is no example of one.

    Args:
        sample: A sample of tensors, after all transforms.
        min_area: Segments of fewer pixels are dropped too (1: those that a crop left empty; 0: none, as the published
            panoptic recipes do).
        max_segments: Only the largest so many are kept; 0 for all.

    Returns:
        `{"images", "image_sizes"}` and `{"segment_map", "labels", "valid"}`; where segments may overlap, `masks`
        `(segments, height, width)` bool instead of `segment_map`.
    """
    areas = segment_areas(sample)
    keep = ~sample["is_crowd"] & (areas >= min_area)
    if max_segments:
        keep = keep & _largest(areas, keep, max_segments)
    sample = keep_segments(sample, keep)
    targets = Targets(labels=sample["labels"], valid=tf.ones_like(sample["labels"], tf.bool))
    if "membership" in sample:
        targets["masks"] = _dense_masks(sample)
    else:
        targets["segment_map"] = sample["segment_map"]
    return _inputs(sample["image"]), targets


def evaluation_element(sample: Sample, *, shortest_edge: int = 0, longest_edge: int = 0) -> tuple[ModelInputs, Targets]:
    """Inputs at the size that the model shall see, and the whole truth at the original size.

    Args:
        sample: A sample of tensors.
        shortest_edge: The image's shorter side is resized to it; 0 keeps the original size.
        longest_edge: Bound of the longer side; 0 for none.

    Returns:
        `{"images", "image_sizes"}` and `{"segment_map", "labels", "valid", "is_crowd", "image_id", "original_size"}`,
        with `membership` where segments may overlap.
    """
    image, original_size = sample["image"], tf.shape(sample["image"])[:2]
    if shortest_edge:
        size = transforms.shortest_edge_size(original_size[0], original_size[1], shortest_edge, longest_edge)
        image = windows.resize_image(image, size)
    targets = Targets(
        segment_map=sample["segment_map"],
        labels=sample["labels"],
        valid=tf.ones_like(sample["labels"], tf.bool),
        is_crowd=sample["is_crowd"],
        image_id=sample["image_id"],
        original_size=original_size,
    )
    if "membership" in sample:
        targets["membership"] = sample["membership"]
    return _inputs(image), targets


def segment_areas(sample: Sample) -> tf.Tensor:
    """Pixels of each segment, `(segments,)` int32."""
    shifted = tf.reshape(sample["segment_map"], [-1]) - VOID
    membership = sample.get("membership")
    count = tf.size(sample["labels"]) if membership is None else tf.shape(membership)[1]
    areas = tf.math.bincount(shifted, minlength=count + 1, maxlength=count + 1)[1:]
    return areas if membership is None else tf.linalg.matvec(tf.cast(membership, tf.int32), areas)


def keep_segments(sample: Sample, keep: tf.Tensor) -> Sample:
    """Drops segments, renumbers the others without gaps; pixels of dropped segments become void.

    Where segments may overlap, regions stay and lose the dropped segments.

    Args:
        sample: A sample of tensors.
        keep: `(segments,)` bool.
    """
    tables = {key: tf.boolean_mask(sample[key], keep) for key in _TABLES if key in sample}
    if "membership" in sample:
        return {**sample, **tables}
    segment_map = sample["segment_map"]

    def renumber() -> tf.Tensor:
        # Entry 0 stands for void, so that the map, shifted by one, is a row number of the table.
        table = tf.concat([[VOID], tf.where(keep, tf.cumsum(tf.cast(keep, tf.int32)) - 1, VOID)], axis=0)
        return tf.gather(table, segment_map - VOID)

    return {**sample, **tables, "segment_map": tf.cond(tf.reduce_all(keep), lambda: segment_map, renumber)}


def _dense_masks(sample: Sample) -> tf.Tensor:
    """`(segments, height, width)` bool."""
    with_void = tf.pad(sample["membership"], [[0, 0], [1, 0]])
    return tf.gather(with_void, sample["segment_map"] - VOID, axis=1)


def _largest(areas: tf.Tensor, keep: tf.Tensor, count: int) -> tf.Tensor:
    """True for the `count` largest segments among those to keep; of equal ones, the first."""
    order = tf.argsort(tf.where(keep, areas, -1), direction="DESCENDING", stable=True)
    return tf.math.invert_permutation(order) < count


def _inputs(image: tf.Tensor) -> ModelInputs:
    return ModelInputs(images=image, image_sizes=tf.shape(image)[:2])
