"""Segment maps, binary masks and their padding."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

from kmaskformer.ops.masks import masks_from_segment_map, pad_bottom_right, pad_targets, target_masks

SEGMENT_MAP = np.array([[[0, 0, -1], [2, 1, 1]]], np.int32)


def test_masks_from_segment_map():
    masks = masks_from_segment_map(SEGMENT_MAP, 4)
    assert masks.dtype == tf.bool
    expected = [
        [[1, 1, 0], [0, 0, 0]],
        [[0, 0, 0], [0, 1, 1]],
        [[0, 0, 0], [1, 0, 0]],
        [[0, 0, 0], [0, 0, 0]],
    ]
    np.testing.assert_array_equal(masks, [expected])
    assert masks_from_segment_map(SEGMENT_MAP, 2, dtype="float32").dtype == tf.float32


def test_target_masks_of_both_forms_agree():
    segment_map = np.random.default_rng(0).integers(-1, 3, (2, 10, 13)).astype(np.int32)
    from_map = {"segment_map": segment_map, "labels": np.zeros((2, 3), np.int32)}
    from_masks = {"masks": np.asarray(masks_from_segment_map(segment_map, 3, "uint8"))}
    for size in (None, (3, 4), (5, 5)):
        np.testing.assert_array_equal(target_masks(from_map, size), target_masks(from_masks, size))


@pytest.mark.parametrize(
    ("size", "mask_size", "padded"),
    [
        ((96, 131), (32, 40), (128, 160)),
        ((121, 131), (31, 33), (121, 131)),
        ((96, 129), (24, 40), (96, 160)),
        ((128, 160), (32, 40), (128, 160)),
        ((127, 157), (32, 40), (127, 157)),
        ((8, 8), (4, 4), (8, 8)),
        ((16, 24), (16, 24), (16, 24)),
        ((24, 24), (8, 8), (32, 32)),
        ((64, 64), (8, 8), (64, 64)),
    ],
)
def test_targets_are_padded_to_the_extent_of_the_logits(size, mask_size, padded):
    targets = {"segment_map": np.zeros((1, *size), np.int32), "labels": np.zeros((1, 1), np.int32)}
    result = pad_targets(targets, mask_size)["segment_map"]
    assert result.shape == (1, *padded)
    assert np.all(np.asarray(result)[:, : size[0], : size[1]] == 0)
    assert np.sum(np.asarray(result) == -1) == padded[0] * padded[1] - size[0] * size[1]
    masks = pad_targets({"masks": np.ones((1, 2, *size), bool)}, mask_size)["masks"]
    assert masks.shape == (1, 2, *padded) and masks.dtype == tf.bool
    assert np.sum(masks) == 2 * size[0] * size[1]

    @tf.function(input_signature=[tf.TensorSpec((None, None, None), tf.int32), tf.TensorSpec((2,), tf.int32)])
    def dynamic(segment_map, mask_size):
        return pad_targets({"segment_map": segment_map}, (mask_size[0], mask_size[1]))["segment_map"]

    np.testing.assert_array_equal(dynamic(targets["segment_map"], np.array(mask_size, np.int32)), result)


def test_padding_keeps_larger_axes():
    x = np.ones((1, 4, 6), np.float32)
    padded = pad_bottom_right(x, (5, 3), 7)
    np.testing.assert_array_equal(padded[0, :4], x[0])
    np.testing.assert_array_equal(padded[0, 4], np.full(6, 7))


def test_messages():
    targets = {"segment_map": np.zeros((1, 100, 90), np.int32)}
    with pytest.raises(ValueError, match=r"larger than the padded image.*targets of \(100, 90\).*\(16, 24\)"):
        pad_targets(targets, (16, 24))
    with pytest.raises(ValueError, match=r"must have 'segment_map' or 'masks'. Received: keys \['labels'\]"):
        pad_targets({"labels": np.zeros((1, 2))}, (4, 4))
