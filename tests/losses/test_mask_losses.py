"""Focal and dice loss: golden numbers, extremes, and the joint form against the plain one."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

from kmaskformer.losses.mask_losses import dice_loss, mask_signs, sigmoid_focal_loss, upsampled_focal_and_dice
from kmaskformer.ops.resize import resize_bilinear


def test_golden_values():
    logits = np.linspace(-3, 3, 24).reshape(2, 1, 12).astype(np.float32)
    masks = (np.arange(24) % 3 == 0).reshape(2, 1, 12)
    assert float(np.sum(sigmoid_focal_loss(logits, masks))) / 2 == pytest.approx(0.43201572, abs=1e-6)
    assert float(np.sum(dice_loss(logits, masks))) / 2 == pytest.approx(0.60023522, abs=1e-6)


def test_focal_parameters():
    logits, masks = np.array([[0.0, 0.0]], np.float32), np.array([[1, 0]])
    bce = np.log(2)
    assert float(sigmoid_focal_loss(logits, masks, alpha=0.25, gamma=0.0)) == pytest.approx(bce / 2)
    assert float(sigmoid_focal_loss(logits, masks, alpha=0.5, gamma=1.0)) == pytest.approx(bce / 4)
    assert float(sigmoid_focal_loss(logits, masks, alpha=1.0, gamma=2.0)) == pytest.approx(bce / 8)


def test_dice_of_empty_and_full_masks():
    sure = np.full((1, 4, 4), 50.0, np.float32)
    assert float(dice_loss(-sure, np.zeros((1, 4, 4)))[0]) == pytest.approx(0.0, abs=1e-6)
    assert float(dice_loss(sure, np.ones((1, 4, 4)))[0]) == pytest.approx(0.0, abs=1e-6)
    assert float(dice_loss(sure, np.zeros((1, 4, 4)))[0]) == pytest.approx(1 - 1 / 17)


@pytest.fixture()
def problem(rng):
    logits = rng.normal(scale=3, size=(2, 3, 6, 5)).astype(np.float32)
    masks = rng.random((2, 3, 23, 20)) < 0.3
    masks[0, 1], masks[1, 2] = False, True
    return tf.constant(logits), tf.constant(masks), tf.constant(rng.normal(size=(2, 2, 3)), tf.float32)


def plain(logits, masks):
    upsampled = resize_bilinear(logits, masks.shape[-2:])
    return sigmoid_focal_loss(upsampled, masks), dice_loss(upsampled, masks)


def joint(logits, masks):
    return upsampled_focal_and_dice(logits, mask_signs(masks))


def value_and_gradient(losses_of, logits, masks, weights):
    with tf.GradientTape() as tape:
        tape.watch(logits)
        losses = losses_of(logits, masks)
        total = tf.reduce_sum(tf.stack(losses) * weights)
    return losses, tape.gradient(total, logits)


@pytest.mark.parametrize("mode", ["eager", "graph", "xla"])
def test_joint_form_has_value_and_gradient_of_the_plain_one(problem, mode):
    logits, masks, weights = problem
    expected, expected_gradient = value_and_gradient(plain, logits, masks, weights)

    def run():
        return value_and_gradient(joint, logits, masks, weights)

    losses, gradient = run() if mode == "eager" else tf.function(run, jit_compile=mode == "xla", autograph=False)()
    np.testing.assert_allclose(losses, expected, atol=1e-6, rtol=1e-5)
    np.testing.assert_allclose(gradient, expected_gradient, atol=1e-7, rtol=1e-4)


def test_gradient_is_the_slope(problem):
    logits, masks, weights = problem
    _, gradient = value_and_gradient(joint, logits, masks, weights)
    direction = np.random.default_rng(1).normal(size=logits.shape)
    step = 1e-2

    def total(x):
        return float(tf.reduce_sum(tf.stack(joint(tf.constant(x, tf.float32), masks)) * weights))

    slope = (total(logits + step * direction) - total(logits - step * direction)) / (2 * step)
    assert slope == pytest.approx(float(np.sum(gradient * direction)), rel=1e-3)


def test_extreme_logits_stay_finite(problem):
    logits, masks, weights = problem
    losses, gradient = value_and_gradient(joint, tf.sign(logits) * 1e4, masks, weights)
    assert np.isfinite(losses).all() and np.isfinite(gradient).all()


def test_half_precision_gives_float32(problem):
    logits, masks, _ = problem
    for dtype in (tf.float16, tf.bfloat16):
        half = tf.cast(logits, dtype)
        focal, dice = joint(half, masks)
        assert focal.dtype == dice.dtype == tf.float32
        expected = plain(tf.cast(half, tf.float32), masks)
        np.testing.assert_allclose([focal, dice], expected, rtol=1e-5)
