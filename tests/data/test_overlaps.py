"""Maps of regions against the dense masks they stand for."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

from kmaskformer.data import targets, transforms
from kmaskformer.data.overlaps import regions_of_masks, settle_overlaps
from kmaskformer.structures import VOID


def dense(segment_map, membership):
    return np.pad(membership, [(0, 0), (1, 0)])[:, segment_map - VOID]


def random_masks(rng, count=12, height=20, width=31):
    masks = np.zeros((count, height, width), bool)
    for mask in masks:
        top, left = rng.integers(0, (height - 4, width - 4))
        mask[top : top + rng.integers(1, 15), left : left + rng.integers(1, 20)] = True
    masks[3] = False
    masks[7] = masks[2]
    return masks


def sample_of(masks, crowd=()):
    segment_map, membership = regions_of_masks(masks, *masks.shape[1:])
    return {
        "image": np.zeros((*masks.shape[1:], 3), np.uint8),
        "segment_map": segment_map,
        "membership": membership,
        "labels": np.arange(len(masks), dtype=np.int32),
        "is_crowd": np.isin(np.arange(len(masks)), crowd),
        "image_id": "a",
    }


def test_regions_restore_the_masks(rng):
    for _ in range(20):
        masks = random_masks(rng)
        segment_map, membership = regions_of_masks(masks, 20, 31)
        np.testing.assert_array_equal(dense(segment_map, membership), masks)
        assert set(np.unique(segment_map)) - {VOID} == set(range(membership.shape[1]))  # none is empty
        assert len(np.unique(membership, axis=1).T) == membership.shape[1]  # none occurs twice


def test_no_masks():
    segment_map, membership = regions_of_masks([], 2, 3)
    assert (segment_map == VOID).all() and membership.shape == (0, 0)


def test_the_smallest_of_several_is_in_front(rng):
    masks = random_masks(rng)
    settled = settle_overlaps(sample_of(masks))
    areas = np.where(masks, masks.sum(axis=(1, 2))[:, None, None], 10**6)
    expected = np.where(masks.any(axis=0), areas.argmin(axis=0), VOID)
    np.testing.assert_array_equal(settled["segment_map"], expected)
    assert "membership" not in settled
    assert settle_overlaps(settled) is settled


def as_tensors(sample):
    return {key: tf.convert_to_tensor(value) for key, value in sample.items()}


def test_targets_of_a_crop_are_the_cropped_masks(rng):
    masks = random_masks(rng)
    masks[:, 10:, :16] = False
    sample = as_tensors(sample_of(masks, crowd=(1,)))
    np.testing.assert_array_equal(targets.segment_areas(sample), masks.sum(axis=(1, 2)))
    cropped = transforms.crop(sample, 4, 3, 9, 20)
    inputs, truth = targets.training_element(cropped)
    expected = masks[:, 4:13, 3:23]
    kept = [row for row in range(len(masks)) if row != 1 and expected[row].any()]
    assert truth["labels"].numpy().tolist() == kept and len(kept) < len(masks) - 2
    np.testing.assert_array_equal(truth["masks"], expected[kept])
    assert "segment_map" not in truth and inputs["images"].shape == (9, 20, 3)


@pytest.mark.parametrize("max_segments", [2, 0])
def test_the_largest_segments_are_kept(rng, max_segments):
    masks = random_masks(rng)
    _, truth = targets.training_element(as_tensors(sample_of(masks)), max_segments=max_segments)
    areas = masks.sum(axis=(1, 2))
    assert sorted(truth["masks"].numpy().sum(axis=(1, 2))) == sorted(areas[areas > 0])[-max_segments:]
