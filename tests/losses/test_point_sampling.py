"""Mask losses at sampled points: where the points lie, and that they estimate the dense losses."""

from __future__ import annotations

import keras
import numpy as np
import pytest
import tensorflow as tf

from kmaskformer.build import build_criterion
from kmaskformer.config import LossConfig
from kmaskformer.losses.mask_losses import dice_loss, sigmoid_focal_loss
from kmaskformer.losses.point_sampling import PointSampling, interpolate_at, masks_at
from kmaskformer.losses.set_criterion import SetCriterion
from kmaskformer.ops.resize import resize_bilinear

SEGMENT_MAP = np.kron(np.array([[0, 1, -1], [0, 0, 1]]), np.ones((8, 8), int))[None].astype("int32")


def pixel_centres(height, width):
    rows, columns = np.meshgrid((np.arange(height) + 0.5) / height, (np.arange(width) + 0.5) / width, indexing="ij")
    return np.stack([rows, columns], -1).reshape(1, 1, -1, 2).astype("float32")


@pytest.fixture()
def logits(rng):
    return rng.standard_normal((1, 2, 4, 6)).astype("float32") * 3


def test_interpolation_is_that_of_the_dense_losses(logits):
    points = np.tile(pixel_centres(16, 24), (1, 2, 1, 1))
    expected = np.asarray(resize_bilinear(logits, (16, 24))).reshape(1, 2, -1)
    np.testing.assert_allclose(interpolate_at(logits, points), expected, atol=1e-5)


def test_targets_are_those_of_the_pixel_that_a_point_is_in():
    points = np.tile(pixel_centres(16, 24), (1, 2, 1, 1))
    masks = np.stack([SEGMENT_MAP[0] == 0, SEGMENT_MAP[0] == 1])[None]
    for targets in ({"segment_map": SEGMENT_MAP}, {"masks": masks}):
        np.testing.assert_array_equal(masks_at(targets, points), masks.reshape(1, 2, -1))
    corner = np.ones((1, 2, 1, 2), "float32")
    np.testing.assert_array_equal(masks_at({"segment_map": SEGMENT_MAP}, corner), [[[0], [1]]])


def test_uniform_points_estimate_the_dense_losses(logits):
    masks = np.stack([SEGMENT_MAP[0] == 0, SEGMENT_MAP[0] == 1])[None].astype("float32")
    full = resize_bilinear(logits, (16, 24))
    focal, dice = PointSampling(100_000, importance_ratio=0.0, seed=1)(logits, {"segment_map": SEGMENT_MAP})
    np.testing.assert_allclose(focal, sigmoid_focal_loss(full, masks), rtol=0.03)
    np.testing.assert_allclose(dice, dice_loss(full, masks), atol=0.01)


def test_picked_points_lie_where_the_mask_is_undecided():
    """A ramp of logits from -8 to 8: three quarters of 40 points are the most uncertain of 120 candidates."""
    ramp = np.tile(np.linspace(-8, 8, 64, dtype="float32"), (1, 1, 64, 1))
    points = np.asarray(PointSampling(40, seed=3).draw(ramp))
    assert points.shape == (1, 1, 40, 2) and points.min() >= 0 and points.max() < 1
    distance = np.abs(points[0, 0, :, 1] - 0.5)
    assert distance[:30].max() < 0.2  # the 30 nearest of 120 uniform ones reach to about 0.125
    assert distance[30:].max() > 0.25  # ten uniform ones


def test_every_call_has_new_points_and_the_seed_decides_them(logits):
    sampling, again = PointSampling(50, seed=7), PointSampling(50, seed=7)
    first, second = np.asarray(sampling.draw(logits)), np.asarray(sampling.draw(logits))
    assert not np.allclose(first, second)
    np.testing.assert_array_equal(again.draw(logits), first)
    restored = PointSampling.from_config(sampling.get_config())
    np.testing.assert_array_equal(restored.draw(logits), first)


def test_gradient_reaches_the_logits_and_training_on_points_finds_the_masks(logits):
    variable = tf.Variable(logits)
    sampling = PointSampling(64, seed=0)
    optimizer = keras.optimizers.Adam(0.3)

    @tf.function(jit_compile=True)
    def step():
        with tf.GradientTape() as tape:
            focal, dice = sampling(variable, {"segment_map": SEGMENT_MAP})
            loss = tf.reduce_sum(20 * focal + dice)
        optimizer.apply([tape.gradient(loss, variable)], [variable])

    optimizer.build([variable])
    for _ in range(60):
        step()
    masks = np.stack([SEGMENT_MAP[0] == 0, SEGMENT_MAP[0] == 1])[None]
    predicted = np.asarray(resize_bilinear(variable.numpy(), (16, 24))) > 0
    assert (predicted == masks).mean() > 0.9
    assert (resize_bilinear(logits, (16, 24)).numpy() > 0).astype(bool).__eq__(masks).mean() < 0.7


def test_criterion_with_points_has_the_same_terms_and_round_trips(logits):
    outputs = {"class_logits": np.zeros((1, 2, 4), "float32"), "mask_logits": logits}
    targets = {"segment_map": SEGMENT_MAP, "labels": np.array([[1, 2]]), "valid": np.ones((1, 2), bool)}
    dense = SetCriterion(3)(outputs, targets)
    criterion = SetCriterion(3, point_sampling=PointSampling(20_000, importance_ratio=0.0, seed=1))
    sampled = criterion(outputs, targets)
    assert float(sampled["loss_ce"]) == float(dense["loss_ce"])
    for name in ("loss_mask", "loss_dice"):
        assert float(sampled[name]) == pytest.approx(float(dense[name]), rel=0.05)
    restored = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(criterion))
    assert restored.point_sampling.get_config() == criterion.point_sampling.get_config()
    assert restored.seed_generator is restored.point_sampling.seed_generator
    assert SetCriterion(3).seed_generator is None


@pytest.mark.parametrize("stride", [1, 2, 4])
def test_losses_at_a_part_of_the_targets_size(logits, stride):
    """Masks shrink by nearest sampling; here a block of 4 x 4 pixels lies in one segment."""
    outputs = {"class_logits": np.zeros((1, 2, 4), "float32"), "mask_logits": logits}
    targets = {"segment_map": SEGMENT_MAP, "labels": np.array([[1, 2]]), "valid": np.ones((1, 2), bool)}
    small = SEGMENT_MAP[0, ::stride, ::stride]
    masks = np.stack([small == 0, small == 1])[None].astype("float32")
    criterion = SetCriterion(3, mask_stride=stride)
    order = np.asarray(criterion.matcher(outputs, targets))[0]
    terms = criterion(outputs, targets)
    resized = resize_bilinear(logits[:, order], small.shape)
    focal, dice = (loss(resized, masks) for loss in (sigmoid_focal_loss, dice_loss))
    assert float(terms["loss_mask"]) == pytest.approx(20 * np.mean(focal), rel=1e-5)
    assert float(terms["loss_dice"]) == pytest.approx(np.mean(dice), rel=1e-5)
    assert SetCriterion.from_config(criterion.get_config()).mask_stride == stride


def test_a_stride_must_be_positive():
    with pytest.raises(ValueError, match="`mask_stride` must be a positive integer"):
        SetCriterion(3, mask_stride=0)


def test_configuration_chooses_where_the_losses_are_taken():
    criterion = build_criterion(LossConfig(mask_stride=2))
    assert criterion.mask_stride == 2 and criterion.point_sampling is None
    assert build_criterion(LossConfig(num_points=77)).point_sampling.num_points == 77


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_points": 0}, "`num_points` must be a positive integer. Received: num_points=0"),
        ({"oversample_ratio": 0.5}, "`oversample_ratio` must be at least 1"),
        ({"importance_ratio": 1.5}, "`importance_ratio` must lie in 0..1"),
    ],
)
def test_arguments_out_of_range(arguments, message):
    with pytest.raises(ValueError, match=message):
        PointSampling(**arguments)
