"""Restoring masks to the image's own size."""

from __future__ import annotations

import numpy as np
import pytest
from keras import ops

from kmaskformer.inference.restore import (
    restore_class_scores,
    restore_mask_logits,
    restore_pixel_logits,
    upsample_mask_logits,
)


def bilinear(values: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Bilinear resize of the last two axes with half-pixel centres, one output at a time."""
    for axis, length in ((-2, size[0]), (-1, size[1])):
        source = values.shape[axis]
        centers = np.clip((np.arange(length) + 0.5) * source / length - 0.5, 0, source - 1)
        low = np.floor(centers).astype(int)
        high = np.minimum(low + 1, source - 1)
        weight = (centers - low).reshape((-1, 1) if axis == -2 else (1, -1))
        values = np.take(values, low, axis) * (1 - weight) + np.take(values, high, axis) * weight
    return values


@pytest.mark.parametrize(
    ("features", "padded", "image", "output"),
    [
        ((8, 8), (32, 32), (32, 32), (32, 32)),
        ((8, 16), (32, 64), (27, 50), (27, 50)),
        ((8, 16), (32, 64), (27, 50), (61, 33)),
        ((31, 33), (121, 131), (96, 131), (120, 161)),
        ((1, 1), (4, 4), (1, 1), (1, 1)),
        ((3, 2), (10, 7), (9, 7), (1, 5)),
    ],
)
def test_equals_resize_crop_resize(rng, features, padded, image, output):
    logits = rng.normal(size=(2, 3, *features)) * 4
    expected = bilinear(bilinear(logits, padded)[..., : image[0], : image[1]], output)
    restored = ops.convert_to_numpy(restore_mask_logits(logits.astype("float32"), padded, image, output))
    assert restored.shape == (2, 3, *output) and restored.dtype == np.float32
    np.testing.assert_allclose(restored, expected, atol=5e-5)


def test_size_may_be_a_tensor_and_half_precision_is_widened(rng):
    logits = rng.normal(size=(1, 2, 5, 4)).astype("float16")
    sizes = [ops.convert_to_tensor(np.array(size, "int32")) for size in ((20, 16), (18, 13), (36, 26))]
    restored = restore_mask_logits(ops.convert_to_tensor(logits), *sizes)
    expected = bilinear(bilinear(logits.astype("float64"), (20, 16))[..., :18, :13], (36, 26))
    np.testing.assert_allclose(ops.convert_to_numpy(restored), expected, atol=1e-5)


def test_class_scores_are_cropped_then_resized(rng):
    scores = rng.random((1, 3, 12, 9)).astype("float32")
    expected = bilinear(scores[..., :10, :7], (21, 5))
    np.testing.assert_allclose(
        ops.convert_to_numpy(restore_class_scores(scores, (10, 7), (21, 5))), expected, atol=1e-6
    )


def test_upsample_reaches_the_padded_size(rng):
    logits = rng.normal(size=(1, 2, 4, 3)).astype("float32")
    expected = bilinear(logits, (13, 12))
    np.testing.assert_allclose(ops.convert_to_numpy(upsample_mask_logits(logits, (13, 12))), expected, atol=1e-5)


def test_pixel_logits_are_enlarged_by_the_stride_not_to_the_padded_size(rng):
    logits = rng.normal(size=(1, 4, 3, 5)).astype("float32")
    expected = bilinear(bilinear(np.moveaxis(logits, -1, 1), (16, 12))[..., :13, :9], (26, 9))
    restored = ops.convert_to_numpy(restore_pixel_logits(logits, (13, 9), (26, 9)))
    np.testing.assert_allclose(restored, expected, atol=1e-5)
