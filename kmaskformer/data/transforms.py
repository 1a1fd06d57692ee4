"""Augmentations: TensorFlow functions that change image and segment map together.

A transform is `function(sample, seed, *, options) -> sample`. Fix the options with `functools.partial` and put the
functions in a list; the list's order is the order of the transforms:

    transforms = [
        partial(resize_shortest_edge, sizes=(160, 192, 224), longest_edge=640),
        partial(random_crop, size=(160, 224)),
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
    sample: Sample, seed: tf.Tensor, *, sizes: int | Sequence[int], longest_edge: int = 0
) -> Sample:
    """Resizes so that the shorter side is one of `sizes`, drawn at random, and the longer at most `longest_edge`.

    Args:
        sample: The sample.
        seed: Two int32.
        sizes: Length or lengths of the shorter side.
        longest_edge: Bound of the longer side, 0 for none; it wins over the shorter side's.
    """
    choices = tf.constant([sizes] if isinstance(sizes, int) else list(sizes), tf.int32)
    index = tf.random.stateless_uniform((), seed, 0, tf.size(choices), tf.int32)
    height, width = _image_size(sample)
    return resize(sample, shortest_edge_size(height, width, choices[index], longest_edge))


def shortest_edge_size(
    height: tf.Tensor, width: tf.Tensor, shortest_edge: int | tf.Tensor, longest_edge: int = 0
) -> tf.Tensor:
    """Size `(2,)` int32 of an image whose shorter side becomes `shortest_edge`, its longer at most `longest_edge`."""
    size = tf.cast(tf.stack([height, width]), tf.float64)
    scale = tf.cast(shortest_edge, tf.float64) / tf.reduce_min(size)
    if longest_edge:
        scale = tf.minimum(scale, longest_edge / tf.reduce_max(size))
    return tf.maximum(tf.cast(size * scale + 0.5, tf.int32), 1)


def random_scale(sample: Sample, seed: tf.Tensor, *, low: float, high: float, stretch: float = 0.0) -> Sample:
    """Resizes by a factor drawn from `low` to `high`.

    `stretch` changes the ratio of the sides as well: each side is scaled by up to `1 + stretch` more, or less.
    """
    factor = tf.random.stateless_uniform((), seed, low, high)
    sides = tf.random.stateless_uniform((2,), _another(seed, 1), -1.0, 1.0)
    factors = factor * tf.exp(sides * tf.math.log1p(float(stretch)))
    size = tf.cast(tf.stack(_image_size(sample)), tf.float32)
    return resize(sample, tf.maximum(tf.cast(tf.round(size * factors), tf.int32), 1))


def resize(sample: Sample, size: tf.Tensor | tuple[int, int]) -> Sample:
    """Resizes to `(height, width)`: the image bilinearly, the map to the nearest pixel."""
    return {
        **sample,
        "image": resize_image(sample["image"], size),
        "segment_map": resize_map(sample["segment_map"], size),
    }


def resize_image(image: tf.Tensor, size: tf.Tensor | tuple[int, int]) -> tf.Tensor:
    """Bilinear resize of a uint8 image; averages over the covered pixels when shrinking, as Pillow does."""
    resized = tf.image.resize(image, size, method="bilinear", antialias=True)
    return tf.saturate_cast(tf.round(resized), tf.uint8)


def resize_map(segment_map: tf.Tensor, size: tf.Tensor | tuple[int, int]) -> tf.Tensor:
    """Nearest resize of an id map, `floor(position * scale)` as PyTorch computes it.

    TensorFlow's own nearest takes pixel centres: halving 0..7 gives 1 3 5 7 there, 0 2 4 6 here.
    """
    size = tf.convert_to_tensor(size, tf.int32)
    rows = _nearest(tf.shape(segment_map)[0], size[0])
    columns = _nearest(tf.shape(segment_map)[1], size[1])
    return tf.gather(tf.gather(segment_map, rows, axis=0), columns, axis=1)


def random_crop(sample: Sample, seed: tf.Tensor, *, size: tuple[int | tf.Tensor, int | tf.Tensor]) -> Sample:
    """Cuts out `(height, width)` at a random place; a side shorter than asked for is kept whole."""
    height, width = _image_size(sample)
    crop_height, crop_width = tf.minimum(size[0], height), tf.minimum(size[1], width)
    room = tf.stack([height - crop_height, width - crop_width])
    top, left = tf.unstack(_random_below(seed, room + 1))
    return crop(sample, top, left, crop_height, crop_width)


def random_scaled_crop(sample: Sample, seed: tf.Tensor, *, size: tuple[int, int], low: float, high: float) -> Sample:
    """What `random_scale` and then `random_crop` give, but only the part cut out is resized.

    The way to train on images that are much larger than the crop. A side of the scaled image that is shorter than
    `size` is kept whole, so that the result may be smaller; `pad` it.
    """
    factor = tf.random.stateless_uniform((), seed, low, high)
    wanted = tf.cast(tf.round(tf.constant(size, tf.float32) / factor), tf.int32)
    window = tf.clip_by_value(wanted, 1, tf.stack(_image_size(sample)))
    cut = random_crop(sample, _another(seed, 1), size=(window[0], window[1]))
    scaled = tf.cast(tf.round(tf.cast(window, tf.float32) * factor), tf.int32)
    return resize(cut, tf.clip_by_value(scaled, 1, tf.constant(size)))


def crop(
    sample: Sample, top: int | tf.Tensor, left: int | tf.Tensor, height: int | tf.Tensor, width: int | tf.Tensor
) -> Sample:
    """Cuts out the rectangle whose upper left corner is at `(top, left)`."""
    window = (slice(top, top + height), slice(left, left + width))
    return {**sample, "image": sample["image"][window], "segment_map": sample["segment_map"][window]}


def random_flip(sample: Sample, seed: tf.Tensor, *, vertical: bool = False, probability: float = 0.5) -> Sample:
    """Mirrors left and right, or top and bottom if `vertical`, with `probability`."""
    step = tf.where(tf.random.stateless_uniform((), seed) < probability, -1, 1)
    window = (slice(None, None, step),) if vertical else (slice(None), slice(None, None, step))
    image = tf.ensure_shape(sample["image"][window], sample["image"].shape)
    segment_map = tf.ensure_shape(sample["segment_map"][window], sample["segment_map"].shape)
    return {**sample, "image": image, "segment_map": segment_map}


def random_quarter_turn(sample: Sample, seed: tf.Tensor) -> Sample:
    """Turns by 0, 90, 180 or 270 degrees, for pictures without an upright, such as aerial ones."""
    turns = tf.random.stateless_uniform((), seed, 0, 4, tf.int32)
    segment_map = tf.image.rot90(sample["segment_map"][..., None], turns)[..., 0]
    return {**sample, "image": tf.image.rot90(sample["image"], turns), "segment_map": segment_map}


def ssd_color(
    sample: Sample,
    seed: tf.Tensor,
    *,
    brightness: float = 32.0,
    contrast: tuple[float, float] = (0.5, 1.5),
    saturation: tuple[float, float] = (0.5, 1.5),
    hue: float = 18.0,
) -> Sample:
    """Colour changes of the SSD detector, each with probability 1/2.

    Brightness, then contrast, saturation, hue; contrast comes last instead in half of the cases. The image is brought
    back to uint8 after each step, so that errors add up as in the published recipes.

    Args:
        sample: The sample; only its image changes.
        seed: Two int32.
        brightness: Largest shift, in grey levels.
        contrast: Range of the factor on all channels.
        saturation: Range of the factor on the saturation.
        hue: Largest shift, in units of 2 degrees (a turn is 180).

    References:
        - [SSD: Single Shot MultiBox Detector](https://arxiv.org/abs/1512.02325)
    """
    do_brightness, do_contrast, contrast_first, do_saturation, do_hue = tf.unstack(
        tf.random.stateless_uniform((5,), seed) < 0.5
    )
    low = [-brightness, contrast[0], saturation[0], -hue]
    high = [brightness, contrast[1], saturation[1], hue]
    draws = tf.random.stateless_uniform((4,), _another(seed, 1)) * (tf.constant(high) - low) + low
    image = _if(do_brightness, lambda x: tf.cast(x, tf.float32) + draws[0], sample["image"])
    image = _if(do_contrast & contrast_first, lambda x: tf.cast(x, tf.float32) * draws[1], image)
    image = _if(do_saturation, lambda x: _change_hsv(x, draws[2], 0.0), image)
    image = _if(do_hue, lambda x: _change_hsv(x, 1.0, draws[3]), image)
    image = _if(do_contrast & ~contrast_first, lambda x: tf.cast(x, tf.float32) * draws[1], image)
    return {**sample, "image": image}


def pad(sample: Sample, seed: tf.Tensor | None = None, *, size: tuple[int, int]) -> Sample:
    """Pads right and bottom to at least `(height, width)`: the image with grey, the map with void.

    The model takes the padding for a part of the image, as in the published recipes.
    """
    del seed
    height, width = _image_size(sample)
    margins = [[0, tf.maximum(size[0] - height, 0)], [0, tf.maximum(size[1] - width, 0)]]
    image = tf.pad(sample["image"], [*margins, [0, 0]], constant_values=tf.constant(PAD_VALUE, tf.uint8))
    return {**sample, "image": image, "segment_map": tf.pad(sample["segment_map"], margins, constant_values=VOID)}


def _if(condition: tf.Tensor, change: Callable[[tf.Tensor], tf.Tensor], image: tf.Tensor) -> tf.Tensor:
    """`change(image)` as uint8 where `condition` holds; fractions are cut off, as in the recipes."""
    return tf.cond(condition, lambda: tf.saturate_cast(change(image), tf.uint8), lambda: image)


def _change_hsv(image: tf.Tensor, saturation_factor: tf.Tensor | float, hue_shift: tf.Tensor | float) -> tf.Tensor:
    """Changes a uint8 image in OpenCV's 8-bit HSV (hue 0..179), rounded as there; `(height, width, 3)` float32."""
    hsv = tf.image.rgb_to_hsv(tf.cast(image, tf.float32) / 255.0)
    hue, saturation, value = tf.unstack(hsv, axis=-1)
    hue = tf.math.floormod(tf.floor(tf.math.floormod(tf.round(hue * 180.0), 180.0) + hue_shift), 180.0)
    saturation = tf.clip_by_value(tf.floor(tf.round(saturation * 255.0) * saturation_factor), 0.0, 255.0)
    changed = tf.stack([hue / 180.0, saturation / 255.0, value], axis=-1)
    return tf.round(tf.image.hsv_to_rgb(changed) * 255.0)


def _nearest(length: tf.Tensor, new_length: tf.Tensor) -> tf.Tensor:
    scale = tf.cast(length, tf.float32) / tf.cast(new_length, tf.float32)
    return tf.minimum(tf.cast(tf.cast(tf.range(new_length), tf.float32) * scale, tf.int32), length - 1)


def _image_size(sample: Sample) -> tuple[tf.Tensor, tf.Tensor]:
    shape = tf.shape(sample["image"])
    return shape[0], shape[1]


def _random_below(seed: tf.Tensor, limits: tf.Tensor) -> tf.Tensor:
    """One int32 below each of `limits`."""
    draws = tf.random.stateless_uniform(tf.shape(limits), seed)
    return tf.minimum(tf.cast(draws * tf.cast(limits, tf.float32), tf.int32), limits - 1)


def _another(seed: tf.Tensor, index: int) -> tf.Tensor:
    return tf.random.experimental.stateless_fold_in(seed, index)
