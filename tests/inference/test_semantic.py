"""Semantic inference."""

from __future__ import annotations

import numpy as np
from keras import ops

from kmaskformer.inference.semantic import pixel_map, semantic_inference, semantic_map, semantic_scores


def softmax(x: np.ndarray) -> np.ndarray:
    exponent = np.exp(x - x.max(-1, keepdims=True))
    return exponent / exponent.sum(-1, keepdims=True)


def test_scores_are_the_sum_over_pairs(rng):
    class_logits, mask_logits = rng.normal(size=(2, 5, 4)), rng.normal(size=(2, 5, 3, 6)) * 3
    probs, masks = softmax(class_logits), 1 / (1 + np.exp(-mask_logits))
    expected = np.zeros((2, 3, 3, 6))
    for query in range(5):
        for category in range(3):
            expected[:, category] += probs[:, query, category, None, None] * masks[:, query]
    scores = semantic_scores(class_logits.astype("float32"), mask_logits.astype("float32"))
    np.testing.assert_allclose(ops.convert_to_numpy(scores), expected, atol=1e-6)


def test_map_and_confidence_by_hand():
    scores = np.array([[[[0.3, 0.0]], [[0.9, 0.0]]]], "float32")
    class_map, confidence = (ops.convert_to_numpy(x) for x in semantic_map(scores))
    assert class_map.tolist() == [[[1, 0]]] and class_map.dtype == np.int32
    np.testing.assert_allclose(confidence, [[[0.75, 0.0]]], atol=1e-6)


def test_the_two_orders_differ_a_little(rng):
    class_logits = rng.normal(size=(1, 4, 4)).astype("float32")
    mask_logits = (rng.normal(size=(1, 4, 4, 4)) * 5).astype("float32")
    sizes = ((16, 16), (13, 16), (40, 50))
    after = ops.convert_to_numpy(semantic_inference(class_logits, mask_logits, *sizes))
    before = ops.convert_to_numpy(semantic_inference(class_logits, mask_logits, *sizes, before_inference=True))
    assert after.shape == before.shape == (1, 3, 40, 50)
    assert 1e-3 < np.abs(after - before).max() < 0.5


def test_pixel_map_is_argmax_and_softmax(rng):
    logits = rng.normal(size=(2, 3, 4, 5)).astype("float32") * 5
    class_map, confidence = (ops.convert_to_numpy(x) for x in pixel_map(logits))
    np.testing.assert_array_equal(class_map, logits.argmax(1))
    np.testing.assert_allclose(confidence, softmax(np.moveaxis(logits, 1, -1)).max(-1), atol=1e-6)
