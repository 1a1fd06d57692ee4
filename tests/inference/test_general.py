"""General inference: each pixel to one pair."""

from __future__ import annotations

import numpy as np
from keras import ops

from kmaskformer.inference.general import general_instances, general_semantic
from kmaskformer.inference.panoptic import panoptic_inference


def numbers(results):
    return {key: ops.convert_to_numpy(value) for key, value in results.items()}


def problem(rng, queries=7, num_classes=4):
    class_logits = np.float32(rng.normal(size=(2, queries, num_classes + 1)) * 2)
    return class_logits, np.float32(rng.normal(size=(2, queries, 6, 5)) * 3)


def best_pairs(class_logits, mask_logits):
    """Winning query, its class and product per pixel of one image, pixel by pixel."""
    exponent = np.exp(class_logits - class_logits.max(-1, keepdims=True))
    probs = exponent / exponent.sum(-1, keepdims=True)
    pairs = [q for q in range(len(probs)) if probs[q].argmax() != probs.shape[1] - 1]
    owner = np.full(mask_logits.shape[1:], -1)
    best = np.zeros(owner.shape)
    for position in np.ndindex(owner.shape):
        for query in pairs:
            product = probs[query].max() / (1 + np.exp(-mask_logits[(query, *position)]))
            if product > best[position]:
                owner[position], best[position] = query, product
    return owner, best, probs


def test_semantic_map_merges_the_pairs_of_one_class(rng):
    class_logits, mask_logits = problem(rng)
    class_map, confidence = (ops.convert_to_numpy(x) for x in general_semantic(class_logits, mask_logits))
    for image in range(2):
        owner, best, probs = best_pairs(class_logits[image], mask_logits[image])
        np.testing.assert_array_equal(class_map[image], probs.argmax(-1)[owner])
        np.testing.assert_allclose(confidence[image], best, atol=1e-6)
    assert class_map.dtype == np.int32


def test_semantic_map_of_an_image_without_pairs_is_void():
    class_logits = np.float32([[[0, 0, 9]], [[9, 0, 0]]])
    class_map, confidence = (ops.convert_to_numpy(x) for x in general_semantic(class_logits, np.ones((2, 1, 2, 2))))
    assert (class_map[0] == -1).all() and (class_map[1] == 0).all()
    assert (confidence[0] == 0).all() and (confidence[1] > 0.7).all()


def test_general_differs_from_semantic_inference_where_many_weak_pairs_agree():
    from kmaskformer.inference.semantic import semantic_map, semantic_scores

    class_logits = np.log(np.float32([[[0.6, 0.3, 0.1], [0.3, 0.5, 0.2], [0.3, 0.5, 0.2]]]))
    mask_logits = np.full((1, 3, 1, 1), 5.0, "float32")
    assert ops.convert_to_numpy(general_semantic(class_logits, mask_logits)[0]).item() == 0
    assert ops.convert_to_numpy(semantic_map(semantic_scores(class_logits, mask_logits))[0]).item() == 1


def test_instances_are_the_pairs_of_things(rng):
    class_logits, mask_logits = problem(rng)
    results = numbers(general_instances(class_logits, mask_logits, thing_ids=(1, 3)))
    for image in range(2):
        owner, _, probs = best_pairs(class_logits[image], mask_logits[image])
        for query in range(7):
            region = owner == query
            expected = region.any() and probs[query].argmax() in (1, 3)
            assert results["valid"][image, query] == expected
            np.testing.assert_array_equal(results["masks"][image, query], region & expected)
            assert results["areas"][image, query] == region.sum() * expected
            if expected:
                ys, xs = np.nonzero(region)
                assert results["boxes"][image, query].tolist() == [xs.min(), ys.min(), xs.max() + 1, ys.max() + 1]
                np.testing.assert_allclose(results["scores"][image, query], probs[query].max(), atol=1e-6)
    assert results["valid"].any()


def test_panoptic_has_no_filter_unless_asked(rng):
    class_logits, mask_logits = problem(rng)
    results = numbers(panoptic_inference(class_logits, mask_logits, (0, 1), None, None))
    for image in range(2):
        owner, _, probs = best_pairs(class_logits[image], mask_logits[image])
        assert (results["panoptic_map"][image] > 0).all()
        things = [q for q in np.unique(owner) if probs[q].argmax() in (0, 1)]
        stuff = {probs[q].argmax() for q in np.unique(owner) if probs[q].argmax() > 1}
        assert results["valid"][image].sum() == len(things) + len(stuff)
        assert results["areas"][image].sum() == 30
    filtered = numbers(panoptic_inference(class_logits, mask_logits, (0, 1), 0.9, 0.9))
    assert filtered["valid"].sum() < results["valid"].sum()
    assert (filtered["scores"][filtered["valid"]] > 0.9).all()


def test_instances_keep_the_filters_and_the_score_threshold(rng):
    class_logits, mask_logits = problem(rng)
    everything = numbers(general_instances(class_logits, mask_logits))
    strict = numbers(general_instances(class_logits, mask_logits, None, None, 0.5))
    scored = numbers(general_instances(class_logits, mask_logits, score_threshold=0.6))
    assert everything["valid"].sum() > strict["valid"].sum()
    own = (mask_logits >= 0).sum((2, 3))
    np.testing.assert_array_equal(strict["valid"], everything["valid"] & (everything["areas"] >= 0.5 * own))
    np.testing.assert_array_equal(scored["valid"], everything["valid"] & (everything["scores"] >= 0.6))
