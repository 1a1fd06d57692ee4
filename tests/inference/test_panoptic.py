"""Panoptic inference: the golden cases, and a plain loop as the oracle."""

from __future__ import annotations

import numpy as np
import pytest
from keras import ops

from kmaskformer.inference.panoptic import panoptic_inference


def logit(p: float) -> float:
    return float(np.log(p / (1 - p)))


def class_row(category: int, score: float, num_classes: int) -> np.ndarray:
    """Logits of one query with the given probability for one class; the rest is spread evenly."""
    row = np.full(num_classes + 1, np.log((1 - score) / num_classes))
    row[category] = np.log(score)
    return row


def run(class_logits, mask_logits, thing_ids, *thresholds):
    results = panoptic_inference(np.float32(class_logits), np.float32(mask_logits), thing_ids, *thresholds)
    return {key: ops.convert_to_numpy(value) for key, value in results.items()}


def rows(results, image=0):
    """The valid rows of one image as tuples (id, category, is_thing)."""
    valid = results["valid"][image]
    columns = (results[key][image][valid].tolist() for key in ("segment_ids", "category_ids", "is_thing"))
    return list(zip(*columns, strict=True))


def probabilities(class_logits, mask_logits):
    """Softmax and sigmoid of a batch. Equal logits may give values that differ in the last bit."""
    return ops.convert_to_numpy(ops.softmax(class_logits)), ops.convert_to_numpy(ops.sigmoid(mask_logits))


def reference(probs, sigmas, thing_ids, score_threshold, overlap_threshold):
    """Panoptic inference of one image as the specification tells it, query by query, in float32."""
    scores, labels = probs.max(-1), probs.argmax(-1)
    keep = np.flatnonzero((labels != probs.shape[-1] - 1) & (scores > np.float32(score_threshold)))
    result, info, stuff_ids, current = np.zeros(sigmas.shape[-2:], int), [], {}, 0
    if keep.size == 0:
        return result, info
    owner = keep[(scores[keep, None, None] * sigmas[keep]).argmax(0)]
    for query in keep:
        region, own = owner == query, sigmas[query] >= 0.5
        if region.sum() == 0 or own.sum() == 0:
            continue
        if np.float32(region.sum()) / np.float32(own.sum()) < np.float32(overlap_threshold):
            continue
        label = int(labels[query])
        if label not in thing_ids and label in stuff_ids:
            result[region] = stuff_ids[label]
            continue
        current += 1
        stuff_ids.setdefault(label, current)
        result[region] = current
        info.append((current, label, label in thing_ids))
    return result, info


def test_golden_bands_share_the_stuff_id():
    masks = np.full((1, 4, 8, 6), -10.0)
    for band in range(4):
        masks[0, band, 2 * band : 2 * band + 2] = 10
    classes = np.stack([class_row(c, 0.95, 10) for c in (7, 1, 7, 2)])[None]
    results = run(classes, masks, (1, 2))
    assert results["panoptic_map"][0, ::2, 0].tolist() == [1, 2, 1, 3]
    assert (results["panoptic_map"][0] == np.repeat([1, 2, 1, 3], 2)[:, None]).all()
    assert rows(results) == [(1, 7, False), (2, 1, True), (3, 2, True)]
    assert results["areas"].tolist() == [[24, 12, 0, 12]]
    assert results["segment_ids"].tolist() == [[1, 2, 0, 3]]
    np.testing.assert_allclose(results["scores"][0], [0.95, 0.95, 0, 0.95], atol=1e-5)
    assert results["panoptic_map"].dtype == results["areas"].dtype == np.int32


def test_probability_055_times_score_08_is_kept():
    results = run(class_row(0, 0.8, 3)[None, None], np.full((1, 1, 4, 4), logit(0.55)), (0,), 0.5, 0.8)
    assert rows(results) == [(1, 0, True)] and (results["panoptic_map"] == 1).all()


def two_queries(own_pixels: int, won_pixels: int):
    """Query 0's own mask has `own_pixels` of which query 1 takes all but `won_pixels`."""
    masks = np.full((1, 2, 1, 20), -12.0)
    masks[0, 0, 0, :own_pixels] = 1.0
    masks[0, 1, 0, won_pixels:own_pixels] = 9.0
    return np.stack([class_row(0, 0.9, 3), class_row(1, 0.95, 3)])[None], masks


def test_overlap_exactly_at_the_threshold_is_kept_and_just_below_is_void():
    # What lies outside both masks goes to the pair of the larger score, query 1, hence the ratios count query 0 alone.
    assert rows(run(*two_queries(10, 8), (0, 1), 0.8, 0.8))[0] == (1, 0, True)
    below = run(*two_queries(10, 7), (0, 1), 0.8, 0.8)
    assert rows(below) == [(1, 1, True)]
    assert below["panoptic_map"][0, 0, :7].tolist() == [0] * 7


def test_score_exactly_at_the_threshold_is_dropped():
    classes = np.zeros((1, 1, 2))  # softmax gives exactly 0.5, and the first of equals is class 0
    assert rows(run(classes, np.ones((1, 1, 2, 2)), (0,), 0.5, 0.0)) == []
    assert rows(run(classes, np.ones((1, 1, 2, 2)), (0,), 0.4999, 0.0)) == [(1, 0, True)]


def test_paints_the_whole_argmax_region_beyond_the_mask_itself():
    masks = np.full((1, 1, 3, 3), -3.0)
    masks[0, 0, 1, 1] = 3
    results = run(class_row(2, 0.9, 4)[None, None], masks, ())
    assert (results["panoptic_map"] == 1).all() and results["areas"].tolist() == [[9]]


def test_nothing_kept_gives_void_and_an_empty_table():
    classes = np.stack([class_row(3, 0.99, 3), class_row(0, 0.6, 3)])[None]
    results = run(classes, np.full((1, 2, 3, 3), 4.0), (0,))
    assert (results["panoptic_map"] == 0).all()
    for key in ("valid", "segment_ids", "category_ids", "is_thing", "scores", "areas"):
        assert not results[key].any(), key


def test_merged_stuff_begins_at_the_first_accepted_pair_and_has_the_best_score():
    masks = np.full((1, 3, 1, 30), -10.0)
    masks[0, 0, 0, :10] = 1  # loses 9 of its 10 pixels to query 1, so it is dropped and leaves no id behind
    masks[0, 1, 0, 1:20] = 9
    masks[0, 2, 0, 20:] = 9
    classes = np.stack([class_row(5, s, 6) for s in (0.85, 0.9, 0.97)])[None]
    results = run(classes, masks, ())
    assert rows(results) == [(1, 5, False)]
    assert results["valid"].tolist() == [[False, True, False]]
    assert results["panoptic_map"][0, 0].tolist() == [0] + [1] * 29
    assert results["scores"][0, 1] == pytest.approx(0.97, abs=1e-5) and results["areas"][0, 1] == 29


def random_problem(rng, ties: bool):
    queries, num_classes = int(rng.integers(1, 9)), int(rng.integers(1, 5))
    class_logits = rng.normal(size=(3, queries, num_classes + 1)) * 3
    mask_logits = rng.normal(size=(3, queries, 4, 4)).repeat(2, axis=2).repeat(2, axis=3) * 4
    if ties:
        # Equal queries only: equal sums of different terms would be ties in one implementation and not in the other.
        class_logits[:, -1], mask_logits[:, -1] = class_logits[:, 0], mask_logits[:, 0]
        mask_logits = np.clip(mask_logits, -100, 0) if rng.random() < 0.3 else mask_logits
    things = tuple(np.flatnonzero(rng.random(num_classes) < 0.5).tolist())
    return np.float32(class_logits), np.float32(mask_logits), things


@pytest.mark.parametrize("ties", [False, True])
def test_equals_the_plain_loop(rng, ties):
    compared, segments = 0, 0
    for _ in range(40):
        class_logits, mask_logits, things = random_problem(rng, ties)
        score, overlap = rng.choice([0.0, 0.3, 0.6, 0.8]), rng.choice([0.0, 0.3, 0.8, 1.0])
        results = run(class_logits, mask_logits, things, score, overlap)
        for image, (probs, sigmas) in enumerate(zip(*probabilities(class_logits, mask_logits), strict=True)):
            expected, info = reference(probs, sigmas, things, score, overlap)
            np.testing.assert_array_equal(results["panoptic_map"][image], expected)
            assert rows(results, image) == info
            assert results["areas"][image][results["valid"][image]].tolist() == [
                int((expected == row[0]).sum()) for row in info
            ]
            compared, segments = compared + 1, segments + len(info)
    assert compared == 120 and segments > 100


def test_thing_id_outside_the_classes_is_an_error():
    with pytest.raises(ValueError, match=r"must lie in 0\.\.1.*Received: \[2\]"):
        run(np.zeros((1, 1, 3)), np.zeros((1, 1, 2, 2)), (2,))
