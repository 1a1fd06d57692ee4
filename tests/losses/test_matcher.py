"""The matcher: golden costs, matchings and invariances."""

from __future__ import annotations

import keras
import numpy as np
import pytest
import tensorflow as tf

from kmaskformer.losses.matcher import HungarianMatcher, class_cost, dice_cost, focal_cost


def toy():
    """The specification's toy case: three queries, segment A (top half, label 2) and B (right half, label 0)."""
    mask_logits = 2 * np.sin(5 * np.linspace(-2, 2, 48)).reshape(1, 3, 4, 4)
    class_logits = np.array([[[2, 0, -1, 0.5], [0, 1, 0, 1], [-1, 2, 1, 0]]], np.float32)
    masks = np.zeros((1, 2, 8, 8), bool)
    masks[0, 0, :4], masks[0, 1, :, 4:] = True, True
    outputs = {"class_logits": class_logits, "mask_logits": mask_logits.astype(np.float32)}
    return outputs, {"labels": np.array([[2, 0]], np.int32), "valid": np.ones((1, 2), bool), "masks": masks}


def random_case(num_queries=9, num_segments=4, batch=3):
    rng = np.random.default_rng(3)
    outputs = {
        "class_logits": rng.normal(size=(batch, num_queries, 6)).astype(np.float32),
        "mask_logits": rng.normal(size=(batch, num_queries, 8, 7), scale=3).astype(np.float32),
    }
    targets = {
        "segment_map": rng.integers(-1, num_segments, (batch, 32, 28)).astype(np.int32),
        "labels": rng.integers(0, 5, (batch, num_segments)).astype(np.int32),
        "valid": rng.random((batch, num_segments)) < 0.7,
    }
    return outputs, targets


def test_golden_costs_and_matching():
    outputs, targets = toy()
    small = targets["masks"][:, :, ::2, ::2].reshape(1, 2, 16).astype(np.float32)
    mask_logits = outputs["mask_logits"].reshape(1, 3, 16)
    expected_mask = [[0.454193, 0.274405], [0.467755, 0.253035], [0.444202, 0.252841]]
    expected_dice = [[0.651780, 0.474359], [0.697583, 0.489921], [0.673900, 0.490457]]
    expected_class = [[-0.035354, -0.710100], [-0.134471, -0.134471], [-0.236883, -0.032059]]
    np.testing.assert_allclose(focal_cost(mask_logits, small)[0], expected_mask, atol=1e-6)
    np.testing.assert_allclose(dice_cost(mask_logits, small)[0], expected_dice, atol=1e-6)
    np.testing.assert_allclose(class_cost(outputs["class_logits"], targets["labels"])[0], expected_class, atol=1e-6)
    total = np.add(20 * np.array(expected_mask), np.add(expected_dice, expected_class))
    np.testing.assert_allclose(
        HungarianMatcher().costs(outputs, targets["labels"], small.reshape(1, 2, 4, 4))[0], total, atol=3e-5
    )
    np.testing.assert_array_equal(HungarianMatcher()(outputs, targets), [[2, 0]])


def test_solvers_agree():
    outputs, targets = random_case()
    queries = np.asarray(HungarianMatcher()(outputs, targets))
    np.testing.assert_array_equal(HungarianMatcher(solver="scipy")(outputs, targets), queries)
    np.testing.assert_array_equal(queries >= 0, targets["valid"])


def test_layers_are_matched_one_by_one():
    first, targets = random_case()
    second = {key: -value for key, value in first.items()}
    together = HungarianMatcher().match_layers([first, second], targets)
    assert together.shape == (2, 3, 4)
    for layer, queries in zip((first, second), together, strict=True):
        np.testing.assert_array_equal(HungarianMatcher()(layer, targets), queries)


@pytest.mark.parametrize("weights", [(1, 0, 0), (0, 1, 0), (0, 0, 1)])
def test_each_cost_finds_a_perfect_query(weights):
    targets = {
        "segment_map": np.arange(16).reshape(1, 4, 4).repeat(4, 1).repeat(4, 2).astype(np.int32) // 4,
        "labels": np.array([[0, 1, 2, 3]], np.int32),
        "valid": np.ones((1, 4), bool),
    }
    order = np.array([2, 0, 3, 1])
    rows = targets["segment_map"][0, ::4, ::4]
    outputs = {
        "class_logits": np.eye(5, dtype=np.float32)[order][None] * 8,
        "mask_logits": np.where(rows[None] == order[:, None, None], 8, -8)[None].astype(np.float32),
    }
    np.testing.assert_array_equal(HungarianMatcher(*weights)(outputs, targets), [np.argsort(order)])


@pytest.mark.parametrize("jit", [False, True])
def test_in_graphs(jit):
    outputs, targets = random_case()
    matched = tf.function(HungarianMatcher(), jit_compile=jit, autograph=False)(outputs, targets)
    np.testing.assert_array_equal(matched, HungarianMatcher()(outputs, targets))


def test_labels_of_padding_may_be_anything():
    outputs, targets = random_case()
    spoilt = {**targets, "labels": np.where(targets["valid"], targets["labels"], 255).astype(np.int32)}
    np.testing.assert_array_equal(HungarianMatcher()(outputs, spoilt), HungarianMatcher()(outputs, targets))


def test_not_finite_predictions_end():
    outputs, targets = random_case()
    outputs["mask_logits"][0, 3] = np.nan
    outputs["class_logits"][1] = np.inf
    queries = np.asarray(HungarianMatcher()(outputs, targets))
    np.testing.assert_array_equal(queries >= 0, targets["valid"])
    assert 3 not in queries[0]


def test_half_precision_is_matched_in_float32():
    outputs, targets = random_case()
    half = {key: tf.cast(value, tf.float16) for key, value in outputs.items()}
    rounded = {key: tf.cast(value, tf.float32) for key, value in half.items()}
    labels, masks = targets["labels"], np.ones((3, 4, 8, 7), np.float32)
    assert HungarianMatcher().costs(half, labels, masks).dtype == tf.float32
    np.testing.assert_array_equal(HungarianMatcher()(half, targets), HungarianMatcher()(rounded, targets))


def test_serialisation():
    matcher = HungarianMatcher(2, 5, 3, solver="scipy")
    copy = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(matcher))
    assert copy.get_config() == matcher.get_config()
    assert (matcher.supports_jit, HungarianMatcher().supports_jit) == (False, True)


def test_messages():
    with pytest.raises(ValueError, match=r"one of \['in_graph', 'scipy'\]. Received: solver='lap'"):
        HungarianMatcher(solver="lap")
    with pytest.raises(ValueError, match=r"must not be 0. Received: 0, 0, 0"):
        HungarianMatcher(0, 0, 0)
