"""Instance inference: hand numbers and a plain loop as the oracle."""

from __future__ import annotations

import numpy as np
import pytest
from keras import ops

from kmaskformer.inference.instance import instance_inference, mask_boxes


def run(class_logits, mask_logits, **options):
    results = instance_inference(np.float32(class_logits), np.float32(mask_logits), **options)
    return {key: ops.convert_to_numpy(value) for key, value in results.items()}


def test_score_box_and_area_by_hand():
    masks = np.full((1, 1, 5, 6), -20.0)
    masks[0, 0, 1:3, 2:6] = np.log(3.0)  # sigma 0.75
    classes = np.log([[[0.1, 0.8, 0.1]]])
    results = run(classes, masks, thing_ids=(1,))
    assert results["valid"].tolist() == [[True]]
    np.testing.assert_allclose(results["scores"], [[0.6]], atol=1e-6)
    assert results["boxes"].tolist() == [[[2, 1, 6, 3]]] and results["areas"].tolist() == [[8]]
    assert results["category_ids"].tolist() == [[1]]
    np.testing.assert_array_equal(results["masks"][0, 0], masks[0, 0] > 0)


def test_stuff_takes_no_place_among_the_candidates():
    classes = np.log([[[0.9, 0.08, 0.02], [0.7, 0.28, 0.02]]])
    masks = np.full((1, 2, 2, 2), 30.0)
    results = run(classes, masks, thing_ids=(1,), max_instances=2, score_threshold=0.0)
    assert results["category_ids"].tolist() == [[1, 1]] and results["query_ids"].tolist() == [[1, 0]]
    np.testing.assert_allclose(results["scores"], [[0.28, 0.08]], atol=1e-5)


def test_one_query_may_give_two_classes_and_an_empty_mask_none():
    classes = np.log([[[0.5, 0.48, 0.02], [0.6, 0.38, 0.02]]])
    masks = np.stack([np.full((2, 2), 30.0), np.full((2, 2), -1.0)])[None]
    results = run(classes, masks, max_instances=4, score_threshold=0.3)
    valid = results["valid"][0]
    assert results["category_ids"][0][valid].tolist() == [0, 1] and results["query_ids"][0][valid].tolist() == [0, 0]
    assert results["boxes"][0][~valid].tolist() == [[0, 0, 0, 0]] * 2


def test_more_candidates_than_pairs_and_classes_is_cut():
    results = run(np.zeros((2, 3, 3)), np.ones((2, 3, 2, 2)), max_instances=100)
    assert results["scores"].shape == (2, 6)


def test_stuff_that_fills_the_places_is_not_valid():
    """Two queries and one thing class are two candidates; the places of the others hold stuff, with the score 0."""
    classes = np.log([[[0.9, 0.08, 0.02], [0.7, 0.28, 0.02]]])
    results = run(classes, np.full((1, 2, 2, 2), 30.0), thing_ids=(1,), max_instances=4, score_threshold=0.0)
    assert results["category_ids"].shape == (1, 4)
    assert results["valid"].tolist() == [[True, True, False, False]]


def test_equals_the_plain_loop(rng):
    for _ in range(10):
        class_logits = np.float32(rng.normal(size=(2, 6, 5)) * 2)
        mask_logits = np.float32(rng.normal(size=(2, 6, 7, 5)) * 4)
        results = run(class_logits, mask_logits, thing_ids=(0, 2, 3), score_threshold=0.2)
        for image in range(2):
            expected = plain_loop(class_logits[image], mask_logits[image], (0, 2, 3), 6)
            assert (np.diff(results["scores"][image]) <= 0).all()
            for row, (score, category, query) in enumerate(expected):
                mask = mask_logits[image, query] > 0
                assert results["scores"][image, row] == pytest.approx(score, abs=1e-5)
                assert (results["category_ids"][image, row], results["query_ids"][image, row]) == (category, query)
                assert results["areas"][image, row] == mask.sum()
                np.testing.assert_array_equal(results["masks"][image, row], mask)
                assert results["valid"][image, row] == (score >= 0.2 and mask.any())


def plain_loop(class_logits, mask_logits, thing_ids, count):
    exponent = np.exp(class_logits - class_logits.max(-1, keepdims=True))
    probs = exponent / exponent.sum(-1, keepdims=True)
    pairs = [(probs[q, c], c, q) for q in range(len(probs)) for c in thing_ids]
    pairs = sorted(pairs, reverse=True)[:count]
    scored = []
    for prob, category, query in pairs:
        sigma = 1 / (1 + np.exp(-mask_logits[query][mask_logits[query] > 0]))
        scored.append((float(prob * (sigma.mean() if sigma.size else 0)), category, query))
    return sorted(scored, reverse=True)


def test_boxes_of_any_rank():
    masks = np.zeros((2, 4, 4), bool)
    masks[0, 3, 0] = masks[0, 1, 2] = True
    assert ops.convert_to_numpy(mask_boxes(masks)).tolist() == [[0, 1, 3, 4], [0, 0, 0, 0]]
