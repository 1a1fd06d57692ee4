"""Augmentations: TensorFlow functions that change image and segment map together.

A transform is `function(sample, seed, *, options) -> sample`. Fix the options with `functools.partial` and put the
functions in a list; the list's order is the order of the transforms:

    transforms = [
        partial(random_resized_crop, size=(160, 224), sizes=(160, 192, 224), longest_edge=640),
        ssd_color,
        random_flip,
        partial(pad, size=(160, 224)),
    ]

`sample` is a `structures.Sample` of tensors. `seed` is two int32; the same seed gives the same result, eagerly and
inside `tf.data`. Images are uint8 before and after every transform.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import tensorflow as tf

from kmaskformer.data.windows import Nearest, choose_corner, resize_window
from kmaskformer.structures import VOID, Sample

Transform = Callable[..., Sample]

PAD_VALUE = 128
"""Grey level of padding, in the image before normalisation."""


def apply_transforms(sample: Sample, transforms: Sequence[Transform], seed: tf.Tensor) -> Sample:
    """Applies `transforms` in order, each with its own seed drawn from `seed` (two int32)."""
    for index, transform in enumerate(transforms):
        sample = transform(sample, tf.random.experimental.stateless_fold_in(seed, index))
    return sample


def resize_shortest_edge(
    sample: Sample, seed: tf.Tensor, *, sizes: int | Sequence[int], longest_edge: int = 0, nearest: Nearest = "floor"
) -> Sample:
    """Resizes so that the shorter side is one of `sizes`, drawn at random, and the longer at most `longest_edge`.

    Args:
        sample: The sample.
        seed: Two int32.
        sizes: Length or lengths of the shorter side.
        longest_edge: Bound of the longer side, 0 for none; it wins over the shorter side's.
        nearest: How the map is resized; see `windows.nearest_positions`.
    """
    return resize_window(sample, _draw_size(sample, seed, sizes, longest_edge), nearest=nearest)


def shortest_edge_size(
    height: tf.Tensor, width: tf.Tensor, shortest_edge: int | tf.Tensor | None, longest_edge: int | None = None
) -> tf.Tensor:
    """Size of an image whose shorter side becomes `shortest_edge` and its longer side at most `longest_edge`.

    `segmenter.shortest_edge_size` is the same in Python's numbers.

    Args:
        height: Scalar int32.
        width: Scalar int32.
        shortest_edge: Length wanted of the shorter side; None for its own.
        longest_edge: Bound of the longer side; None or 0 for no bound.

    Returns:
        `(2,)` int32.
    """
    size = tf.cast(tf.stack([height, width]), tf.float64)
    scale = tf.constant(1.0, tf.float64)
    if shortest_edge is not None:
        scale = tf.cast(shortest_edge, tf.float64) / tf.reduce_min(size)
    if longest_edge:
        scale = tf.minimum(scale, longest_edge / tf.reduce_max(size))
    return tf.maximum(tf.cast(size * scale + 0.5, tf.int32), 1)


def random_resized_crop(
    sample: Sample,
    seed: tf.Tensor,
    *,
    size: tuple[int, int],
    sizes: int | Sequence[int],
    longest_edge: int = 0,
    largest_class: float = 1.0,
    nearest: Nearest = "floor",
) -> Sample:
    """What `resize_shortest_edge` and then `random_crop` give, but only the part cut out is resized.

    Args:
        sample: The sample.
        seed: Two int32.
        size: `(height, width)` to cut out; a side shorter than asked for is kept whole.
        sizes: As in `resize_shortest_edge`.
        longest_edge: As in `resize_shortest_edge`.
        largest_class: As in `random_crop`.
        nearest: As in `resize_shortest_edge`.
    """
    whole = _draw_size(sample, _another(seed, 0), sizes, longest_edge)
    return _cut_resized(sample, _another(seed, 1), whole, tf.constant(size), largest_class, nearest)


def random_range_crop(
    sample: Sample,
    seed: tf.Tensor,
    *,
    sizes: Sequence[int] = (400, 500, 600),
    low: int = 384,
    high: int = 600,
    probability: float = 0.5,
    nearest: Nearest = "center",
) -> Sample:
    """Resizes the shorter side to one of `sizes` and cuts out a rectangle of random height and width.

    Each side is drawn from `low` to `high`, both within the resized image. Followed by `resize_shortest_edge` this is
    the crop of the COCO recipes, half of whose images go another way (`probability`): they are only resized.
    """

    def cut() -> Sample:
        whole = _draw_size(sample, _another(seed, 1), sizes, 0)
        lowest, highest = tf.minimum(whole, low), tf.minimum(whole, high)
        size = lowest + _random_below(_another(seed, 2), highest - lowest + 1)
        changed = _cut_resized(sample, _another(seed, 3), whole, size, 1.0, nearest)
        return {key: tf.ensure_shape(changed[key], _open_shape(sample[key])) for key in ("image", "segment_map")}

    def keep() -> Sample:
        return {key: sample[key] for key in ("image", "segment_map")}

    return {**sample, **tf.cond(tf.random.stateless_uniform((), seed) < probability, cut, keep)}


def random_scale(
    sample: Sample, seed: tf.Tensor, *, low: float, high: float, stretch: float = 0.0, nearest: Nearest = "floor"
) -> Sample:
    """Resizes by a factor drawn from `low` to `high`.

    `stretch` changes the ratio of the sides as well: each side is scaled by up to `1 + stretch` more, or less.
    """
    return resize_window(sample, _draw_scaled_size(sample, seed, low, high, stretch), nearest=nearest)


def random_scaled_crop(
    sample: Sample,
    seed: tf.Tensor,
    *,
    size: tuple[int, int],
    low: float,
    high: float,
    stretch: float = 0.0,
    largest_class: float = 1.0,
    nearest: Nearest = "floor",
) -> Sample:
    """What `random_scale` and then `random_crop` give, but only the part cut out is resized."""
    whole = _draw_scaled_size(sample, _another(seed, 0), low, high, stretch)
    return _cut_resized(sample, _another(seed, 1), whole, tf.constant(size), largest_class, nearest)


def large_scale_jitter(
    sample: Sample,
    seed: tf.Tensor,
    *,
    size: tuple[int, int],
    low: float = 0.1,
    high: float = 2.0,
    largest_class: float = 1.0,
    nearest: Nearest = "floor",
) -> Sample:
    """Fits the image into `size`, scales it by a factor from `low` to `high`, and cuts `size` out at a random place.

    Where the scaled image is smaller than `size` it is kept whole; `pad` it.

    References:
        - [Simple Copy-Paste is a Strong Data Augmentation Method](https://arxiv.org/abs/2012.07177), section 3.
    """
    sides = tf.cast(tf.stack(_image_size(sample)), tf.float32)
    fit = tf.reduce_min(tf.constant(size, tf.float32) / sides)
    factor = fit * tf.random.stateless_uniform((), _another(seed, 0), low, high)
    whole = tf.maximum(tf.cast(tf.round(sides * factor), tf.int32), 1)
    return _cut_resized(sample, _another(seed, 1), whole, tf.constant(size), largest_class, nearest)


def random_crop(
    sample: Sample,
    seed: tf.Tensor,
    *,
    size: tuple[int | tf.Tensor, int | tf.Tensor],
    largest_class: float = 1.0,
) -> Sample:
    """Cuts out `(height, width)` at a random place; a side shorter than asked for is kept whole.

    Args:
        sample: The sample.
        seed: Two int32.
        size: `(height, width)`.
        largest_class: Of ten places, the first is taken where no class has this share of the labelled pixels or more,
            and where there are two classes; the tenth where there is none. 1 takes the first place.
    """
    whole = tf.stack(_image_size(sample))
    return _cut_resized(sample, seed, whole, tf.stack([*size]), largest_class, "floor")


def crop(
    sample: Sample, top: int | tf.Tensor, left: int | tf.Tensor, height: int | tf.Tensor, width: int | tf.Tensor
) -> Sample:
    """Cuts out the rectangle whose upper left corner is at `(top, left)`."""
    window = (slice(top, top + height), slice(left, left + width))
    return {**sample, "image": sample["image"][window], "segment_map": sample["segment_map"][window]}


def random_flip(sample: Sample, seed: tf.Tensor, *, vertical: bool = False, probability: float = 0.5) -> Sample:
    """Mirrors left and right, or top and bottom if `vertical`, with `probability`."""
    axis = [0 if vertical else 1]

    def mirror() -> tuple[tf.Tensor, tf.Tensor]:
        return tf.reverse(sample["image"], axis), tf.reverse(sample["segment_map"], axis)

    def keep() -> tuple[tf.Tensor, tf.Tensor]:
        return sample["image"], sample["segment_map"]

    image, segment_map = tf.cond(tf.random.stateless_uniform((), seed) < probability, mirror, keep)
    return {**sample, "image": image, "segment_map": segment_map}


def random_quarter_turn(sample: Sample, seed: tf.Tensor) -> Sample:
    """Turns by 0, 90, 180 or 270 degrees, for pictures without an upright, such as aerial ones."""
    turns = tf.random.stateless_uniform((), seed, 0, 4, tf.int32)
    segment_map = tf.image.rot90(sample["segment_map"][..., None], turns)[..., 0]
    return {**sample, "image": tf.image.rot90(sample["image"], turns), "segment_map": segment_map}


def pad(sample: Sample, seed: tf.Tensor | None = None, *, size: tuple[int, int]) -> Sample:
    """Pads right and bottom to at least `(height, width)`: the image with grey, the map with void.

    The model takes the padding for a part of the image, as in the published recipes.
    """
    del seed
    height, width = _image_size(sample)
    margins = [[0, tf.maximum(size[0] - height, 0)], [0, tf.maximum(size[1] - width, 0)]]
    image = tf.pad(sample["image"], [*margins, [0, 0]], constant_values=tf.constant(PAD_VALUE, tf.uint8))
    return {**sample, "image": image, "segment_map": tf.pad(sample["segment_map"], margins, constant_values=VOID)}


def _draw_size(sample: Sample, seed: tf.Tensor, sizes: int | Sequence[int], longest_edge: int) -> tf.Tensor:
    choices = tf.constant([sizes] if isinstance(sizes, int) else list(sizes), tf.int32)
    index = tf.random.stateless_uniform((), seed, 0, tf.size(choices), tf.int32)
    return shortest_edge_size(*_image_size(sample), choices[index], longest_edge)


def _draw_scaled_size(sample: Sample, seed: tf.Tensor, low: float, high: float, stretch: float) -> tf.Tensor:
    factor = tf.random.stateless_uniform((), seed, low, high)
    sides = tf.random.stateless_uniform((2,), _another(seed, 1), -1.0, 1.0)
    factors = factor * tf.exp(sides * tf.math.log1p(float(stretch)))
    size = tf.cast(tf.stack(_image_size(sample)), tf.float32)
    return tf.maximum(tf.cast(tf.round(size * factors), tf.int32), 1)


def _cut_resized(
    sample: Sample, seed: tf.Tensor, whole: tf.Tensor, size: tf.Tensor, largest_class: float, nearest: Nearest
) -> Sample:
    """A window of `size`, at a random place, of the sample resized to `whole`."""
    size = tf.minimum(size, whole)
    if largest_class < 1.0:
        corners = tf.stack([_random_below(_another(seed, index), whole - size + 1) for index in range(10)])
        corner = choose_corner(sample, whole, size, corners, largest_class, nearest)
    else:
        corner = _random_below(seed, whole - size + 1)
    return resize_window(sample, whole, tf.concat([corner, size], 0), nearest)


def _open_shape(tensor: tf.Tensor) -> list[int | None]:
    return [None, None, *tensor.shape[2:]]


def _image_size(sample: Sample) -> tuple[tf.Tensor, tf.Tensor]:
    shape = tf.shape(sample["image"])
    return shape[0], shape[1]


def _random_below(seed: tf.Tensor, limits: tf.Tensor) -> tf.Tensor:
    """One int32 below each of `limits`."""
    draws = tf.random.stateless_uniform(tf.shape(limits), seed)
    return tf.minimum(tf.cast(draws * tf.cast(limits, tf.float32), tf.int32), limits - 1)


def _another(seed: tf.Tensor, index: int) -> tf.Tensor:
    return tf.random.experimental.stateless_fold_in(seed, index)
