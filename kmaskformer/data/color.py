"""Colour changes of the SSD detector.

The pixel work is compiled by XLA, which fuses its sixty operations into one loop over the image: 0.8 ms for 512x512
pixels where TensorFlow's own HSV operations took 25 ms (one CPU core).
"""

from __future__ import annotations

from collections.abc import Callable

import tensorflow as tf

from kmaskformer.structures import Sample

_SMALLEST = 2**14
"""Images of fewer pixels are padded to so many before the compiled part."""


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
    draws = tf.random.stateless_uniform((4,), tf.random.experimental.stateless_fold_in(seed, 1))
    shift, factor, saturation_factor, hue_shift = tf.unstack(draws * (tf.constant(high) - low) + low)
    image = sample["image"]
    pixels = _pad_pixels(image)
    pixels = _if(do_brightness, lambda x: _scale_and_shift(x, tf.constant(1.0), shift), pixels)
    pixels = _if(do_contrast & contrast_first, lambda x: _scale_and_shift(x, factor, tf.constant(0.0)), pixels)
    pixels = _if(do_saturation, lambda x: _change_hsv(x, saturation_factor, tf.constant(0.0)), pixels)
    pixels = _if(do_hue, lambda x: _change_hsv(x, tf.constant(1.0), hue_shift), pixels)
    pixels = _if(do_contrast & ~contrast_first, lambda x: _scale_and_shift(x, factor, tf.constant(0.0)), pixels)
    changed = tf.reshape(pixels[: tf.size(image) // 3], tf.shape(image))
    return {**sample, "image": tf.ensure_shape(changed, image.shape)}


def _if(condition: tf.Tensor, change: Callable[[tf.Tensor], tf.Tensor], pixels: tf.Tensor) -> tf.Tensor:
    return tf.cond(condition, lambda: change(pixels), lambda: pixels)


def _pad_pixels(image: tf.Tensor) -> tf.Tensor:
    """`(height, width, 3)` to `(pixels, 3)`, padded to one of four lengths between two powers of two.

    XLA compiles once for each length: so few lengths bound that, whatever sizes images have.
    """
    pixels = tf.reshape(image, (-1, 3))
    if image.shape.is_fully_defined() and image.shape.num_elements() >= 3 * _SMALLEST:
        return pixels
    count = tf.maximum(tf.shape(pixels)[0], _SMALLEST)
    step = tf.bitwise.right_shift(_power_of_two_below(count), 2)
    length = -(-count // step) * step
    return tf.pad(pixels, [[0, length - tf.shape(pixels)[0]], [0, 0]])


def _power_of_two_below(count: tf.Tensor) -> tf.Tensor:
    """The largest power of two that is not above `count`; float64 holds every int32 exactly."""
    exponent = tf.floor(tf.math.log(tf.cast(count, tf.float64)) / tf.math.log(tf.constant(2.0, tf.float64)) + 1e-12)
    return tf.bitwise.left_shift(1, tf.cast(exponent, tf.int32))


@tf.function(jit_compile=True, reduce_retracing=True)
def _scale_and_shift(pixels: tf.Tensor, factor: tf.Tensor, shift: tf.Tensor) -> tf.Tensor:
    """`factor * pixels + shift` as uint8; fractions are cut off, as in the recipes."""
    values = tf.clip_by_value(tf.cast(pixels, tf.float32) * factor + shift, 0.0, 255.0)
    return tf.cast(tf.cast(values, tf.int32), tf.uint8)


@tf.function(jit_compile=True, reduce_retracing=True)
def _change_hsv(pixels: tf.Tensor, saturation_factor: tf.Tensor, hue_shift: tf.Tensor) -> tf.Tensor:
    """Changes uint8 RGB `(pixels, 3)` in OpenCV's 8-bit HSV: hue 0..179 and saturation 0..255, rounded as there."""
    # One channel after the other, XLA works on many pixels at a time: a third of the time.
    red, green, blue = tf.unstack(tf.cast(tf.transpose(pixels), tf.float32))
    value = tf.maximum(tf.maximum(red, green), blue)
    spread = value - tf.minimum(tf.minimum(red, green), blue)
    sector = tf.where(
        value == red,
        green - blue,
        tf.where(value == green, blue - red + 2 * spread, red - green + 4 * spread),
    )
    hue = tf.round(30.0 * sector / tf.maximum(spread, 1.0))
    saturation = tf.round(255.0 * spread / tf.maximum(value, 1.0))
    saturation = tf.clip_by_value(tf.floor(saturation * saturation_factor), 0.0, 255.0)
    # Two comparisons bring it back into a turn; a remainder would keep XLA from working on many pixels at a time.
    hue = hue + tf.math.floormod(tf.floor(hue_shift), 180.0)
    hue = hue + tf.where(hue < 0.0, 180.0, 0.0) - tf.where(hue >= 180.0, 180.0, 0.0)
    return _to_rgb(hue / 30.0, value * saturation / 255.0, value)


def _to_rgb(hue: tf.Tensor, chroma: tf.Tensor, value: tf.Tensor) -> tf.Tensor:
    """Hue 0..6, chroma and value 0..255 to uint8 RGB `(pixels, 3)`.

    A channel lies below the value by the chroma, less where the hue is within two sixths of a turn of its own.
    """
    shares = (tf.abs(hue - 3.0) - 1.0, 2.0 - tf.abs(hue - 2.0), 2.0 - tf.abs(hue - 4.0))
    channels = [value - chroma * (1.0 - tf.clip_by_value(share, 0.0, 1.0)) for share in shares]
    return tf.transpose(tf.cast(tf.cast(tf.stack(channels) + 0.5, tf.int32), tf.uint8))
