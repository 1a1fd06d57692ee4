"""Fixed matching: query i is class i."""

from __future__ import annotations

import json

import keras
import numpy as np
import pytest
import tensorflow as tf

from kmaskformer.losses.matcher import FixedMatcher
from kmaskformer.losses.set_criterion import SetCriterion


def case():
    """Three queries for three classes; segment A is the top half, class 1, B the right half, class 0."""
    mask_logits = np.zeros((1, 3, 4, 4), "float32")
    mask_logits[0, 1, :2] = 100.0  # query 1 is sure of its mask and right
    mask_logits[0, 1, 2:] = -100.0
    class_logits = np.log(np.array([[[4, 2, 1, 1], [1, 5, 1, 1], [2, 2, 2, 2]]], "float32") / 8)
    masks = np.zeros((1, 2, 4, 4), bool)
    masks[0, 0, :2], masks[0, 1, :, 2:] = True, True
    targets = {"labels": np.array([[1, 0]], "int32"), "valid": np.ones((1, 2), bool), "masks": masks}
    return {"class_logits": class_logits, "mask_logits": mask_logits}, targets


def test_losses_by_hand():
    outputs, targets = case()
    terms = {name: float(value) for name, value in SetCriterion(matcher=FixedMatcher())(outputs, targets).items()}
    # Query 2 has no segment: no-object, with weight 0.1.
    expected_ce = (np.log(8 / 4) + np.log(8 / 5) + 0.1 * np.log(4)) / 2.1
    # Query 1 is perfect. Query 0 is undecided at each of 16 pixels, of which 8 are inside.
    expected_mask = 20 * (8 * 0.25 + 8 * 0.75) / 16 * 0.25 * np.log(2) / 2
    expected_dice = (1 - (2 * 4 + 1) / (8 + 8 + 1)) / 2
    expected = {"loss_ce": expected_ce, "loss_mask": expected_mask, "loss_dice": expected_dice}
    assert terms == pytest.approx(expected, rel=1e-5)


def test_matching_follows_the_labels_alone():
    outputs = {"class_logits": np.random.default_rng(0).normal(size=(3, 4, 5)), "mask_logits": None}
    targets = {
        "labels": np.array([[3, 0, 1], [2, 2, 0], [0, 0, 0]]),
        "valid": np.array([[True, True, True], [True, True, False], [False, False, False]]),
    }
    # The second segment of a class, and padding of the table, have no query.
    expected = [[3, 0, 1], [2, -1, -1], [-1, -1, -1]]
    np.testing.assert_array_equal(FixedMatcher()(outputs, targets), expected)
    np.testing.assert_array_equal(FixedMatcher().match_layers([outputs] * 2, targets), [expected] * 2)


def test_the_class_loss_is_the_mean_where_segments_of_a_class_repeat():
    """Both segments are of class 0: the second has no query, so that two of three queries are no-object."""
    outputs, targets = case()
    targets = {**targets, "labels": np.zeros((1, 2), "int32")}
    expected = (np.log(8 / 4) + 0.1 * np.log(8 / 1) + 0.1 * np.log(4)) / 1.2
    assert float(SetCriterion(matcher=FixedMatcher())(outputs, targets)["loss_ce"]) == pytest.approx(expected, rel=1e-5)


def test_compiles_under_xla():
    outputs, targets = case()
    criterion = SetCriterion(matcher=FixedMatcher())
    assert criterion.supports_jit
    compiled = tf.function(criterion, jit_compile=True, autograph=False)(outputs, targets)
    for name, value in criterion(outputs, targets).items():
        assert float(compiled[name]) == pytest.approx(float(value), rel=1e-5)


def test_serialisation():
    criterion = SetCriterion(matcher=FixedMatcher())
    config = json.loads(json.dumps(keras.saving.serialize_keras_object(criterion)))
    assert isinstance(keras.saving.deserialize_keras_object(config).matcher, FixedMatcher)


def test_queries_must_be_classes():
    outputs, targets = case()
    fewer = {key: value[:, :2] for key, value in outputs.items()}
    with pytest.raises(ValueError, match=r"one query per class. Received: 2 queries and 3 classes"):
        SetCriterion(matcher=FixedMatcher())(fewer, targets)


def test_outputs_of_a_per_pixel_model_are_refused():
    _, targets = case()
    with pytest.raises(ValueError, match=r"have 'class_logits' and 'mask_logits'. Received: outputs \['logits'\]"):
        SetCriterion()({"logits": np.zeros((1, 4, 4, 3))}, targets)
