"""Losses and matching that leave unlabelled pixels out: hand numbers, gradients, and equality with a crop."""

from __future__ import annotations

import keras
import numpy as np
import pytest
import tensorflow as tf

from kmaskformer.losses.mask_losses import dice_loss, mask_signs, sigmoid_focal_loss, upsampled_focal_and_dice
from kmaskformer.losses.matcher import HungarianMatcher, dice_cost, focal_cost
from kmaskformer.losses.point_sampling import PointSampling
from kmaskformer.losses.set_criterion import SetCriterion
from kmaskformer.ops.masks import void_pixels
from kmaskformer.ops.resize import resize_bilinear

LN2 = np.log(2.0)
# A segment in the upper row, the lower row unlabelled; all logits are 0, so that every probability is 1/2.
TARGETS = {
    "segment_map": np.array([[[0, 0], [-1, -1]]], np.int32),
    "labels": np.array([[0]], np.int32),
    "valid": np.array([[True]]),
}
OUTPUTS = {"class_logits": np.zeros((1, 1, 2), np.float32), "mask_logits": np.zeros((1, 1, 2, 2), np.float32)}


def test_hand_numbers():
    """Focal at p = 1/2: alpha_t / 4 · ln 2. Dice: 1 - (2 · 1 + 1) / (1 + 2 + 1), with the lower row 1 - 3 / 5."""
    weights = {"loss_mask": 1.0}
    plain = SetCriterion(weights=weights)(OUTPUTS, TARGETS)
    assert float(plain["loss_mask"]) == pytest.approx((0.25 + 0.75) / 2 * LN2 / 4, rel=1e-6)
    assert float(plain["loss_dice"]) == pytest.approx(0.4, rel=1e-6)
    void_aware = SetCriterion(weights=weights, ignore_void=True)(OUTPUTS, TARGETS)
    assert float(void_aware["loss_mask"]) == pytest.approx(0.25 * LN2 / 4, rel=1e-6)
    assert float(void_aware["loss_dice"]) == pytest.approx(0.25, rel=1e-6)
    assert float(void_aware["loss_ce"]) == float(plain["loss_ce"])


def test_hand_numbers_of_the_costs():
    logits, masks = np.zeros((1, 1, 4), np.float32), np.array([[[1, 1, 0, 0]]], np.float32)
    counted = np.array([[[1, 1, 0, 0]]], np.float32)
    assert float(focal_cost(logits, masks)[0, 0, 0]) == pytest.approx(LN2 / 8, rel=1e-6)
    assert float(focal_cost(logits, masks, counted)[0, 0, 0]) == pytest.approx(LN2 / 16, rel=1e-6)
    assert float(dice_cost(logits, masks)[0, 0, 0]) == pytest.approx(0.4, rel=1e-6)
    assert float(dice_cost(logits, masks, counted)[0, 0, 0]) == pytest.approx(0.25, rel=1e-6)


def test_void_rows_change_nothing(rng):
    """With the lower half unlabelled, all terms and the matching are those of the upper half alone."""
    logits = rng.normal(size=(2, 5, 8, 6)).astype(np.float32)
    classes = rng.normal(size=(2, 5, 4)).astype(np.float32)
    segment_map = rng.integers(0, 3, (2, 8, 6)).astype(np.int32)
    segment_map[:, 4:] = -1
    table = {"labels": np.array([[0, 1, 2]] * 2, np.int32), "valid": np.ones((2, 3), bool)}
    criterion = SetCriterion(ignore_void=True, matcher=HungarianMatcher(ignore_void=True))
    whole = criterion({"class_logits": classes, "mask_logits": logits}, {"segment_map": segment_map, **table})
    upper = {"class_logits": classes, "mask_logits": logits[:, :, :4]}
    expected = SetCriterion()(upper, {"segment_map": segment_map[:, :4], **table})
    for key, value in expected.items():
        np.testing.assert_allclose(whole[key], value, rtol=2e-6)
    plain = SetCriterion()({"class_logits": classes, "mask_logits": logits}, {"segment_map": segment_map, **table})
    assert abs(float(plain["loss_mask"]) - float(expected["loss_mask"])) > 0.01


def test_losses_and_gradients_with_a_resize(rng):
    """The fast losses against the plain ones on resized logits, by automatic differentiation."""
    logits = tf.Variable(rng.normal(size=(2, 3, 4, 5)).astype(np.float32))
    masks = (rng.random((2, 3, 8, 10)) < 0.4).astype(np.float32)
    void = rng.random((2, 8, 10)) < 0.3
    masks[np.broadcast_to(void[:, None], masks.shape)] = 0
    weights = rng.random((2, 2, 3)).astype(np.float32)

    def fast():
        return upsampled_focal_and_dice(logits, mask_signs(masks, void), has_void=True)

    def plain():
        resized = resize_bilinear(tf.convert_to_tensor(logits), (8, 10))
        counted = np.broadcast_to(~void[:, None], masks.shape)
        return sigmoid_focal_loss(resized, masks, counted=counted), dice_loss(resized, masks, counted)

    results = []
    for losses in (fast, plain):
        with tf.GradientTape() as tape:
            values = tf.stack(losses())
            total = tf.reduce_sum(values * weights)
        results.append((values, tape.gradient(total, logits)))
    np.testing.assert_allclose(results[0][0], results[1][0], rtol=1e-5)
    np.testing.assert_allclose(results[0][1], results[1][1], rtol=1e-4, atol=1e-7)
    assert np.abs(results[0][1]).max() > 1e-3


def test_matching_does_not_mind_what_a_mask_does_where_nothing_is_labelled():
    """Query 0 is the segment and everything unlabelled; query 1 the segment and a half of its labelled surroundings."""
    segment_map = np.array([[[0, -1, -1, -1, -1], [1, -1, -1, -1, -1]]], np.int32)
    logits = np.full((1, 2, 2, 5), -6.0, np.float32)
    logits[0, 0, 0] = logits[0, 0, 1, 1:] = 6
    logits[0, 1, :, 0] = (6, 0.5)
    targets = {"segment_map": segment_map, "labels": np.array([[0, 1]], np.int32), "valid": np.array([[True, False]])}
    outputs = {"class_logits": np.zeros((1, 2, 3), np.float32), "mask_logits": logits}
    assert HungarianMatcher()(outputs, targets)[0, 0] == 1
    assert HungarianMatcher(ignore_void=True)(outputs, targets)[0, 0] == 0


def test_points_in_void_do_not_count():
    """At logits 0, uniform points: focal of labelled points is that of the segment alone."""
    sampling = PointSampling(num_points=400, importance_ratio=0.0, seed=1)
    criterion = SetCriterion(weights={"loss_mask": 1.0}, point_sampling=sampling, ignore_void=True)
    assert float(criterion(OUTPUTS, TARGETS)["loss_mask"]) == pytest.approx(0.25 * LN2 / 4, rel=1e-5)


def test_off_by_default_serialised_and_refused_for_masks():
    assert not SetCriterion().ignore_void and not HungarianMatcher().ignore_void
    criterion = SetCriterion(ignore_void=True, matcher=HungarianMatcher(ignore_void=True))
    again = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(criterion))
    assert again.ignore_void and again.matcher.ignore_void
    with pytest.raises(ValueError, match=r"`ignore_void` needs targets with a `segment_map`.*overlapping instances"):
        void_pixels({"masks": np.zeros((1, 1, 2, 2), bool)})
