"""Run lengths against pycocotools, and damaged ones."""

from __future__ import annotations

import numpy as np
import pytest

from kmaskformer.data.run_lengths import decode_mask, encode_mask


def masks(rng):
    blob = np.zeros((40, 50), bool)
    blob[3:30, 5:45] = True
    blob[10:12, :] = False
    yield from (blob, ~blob, rng.random((13, 17)) < 0.5, np.zeros((4, 5), bool), np.ones((4, 5), bool))
    yield np.arange(70000).reshape(100, 700) == 69999


def test_round_trip(rng):
    for mask in masks(rng):
        encoded = encode_mask(mask)
        np.testing.assert_array_equal(decode_mask(encoded), mask)
        np.testing.assert_array_equal(decode_mask({**encoded, "counts": encoded["counts"].encode()}), mask)
    assert encode_mask(np.array([[0, 1], [0, 1]])) == {"size": [2, 2], "counts": "22"}
    plain = {"size": [2, 3], "counts": [1, 2, 3]}
    assert decode_mask(plain).astype(int).tolist() == [[0, 1, 0], [1, 0, 0]]


def test_equal_to_pycocotools(rng):
    tools = pytest.importorskip("pycocotools.mask")
    for mask in masks(rng):
        expected = tools.encode(np.asfortranarray(mask.astype(np.uint8)))
        assert encode_mask(mask) == {"size": list(expected["size"]), "counts": expected["counts"].decode()}


@pytest.mark.parametrize("counts", [[1, 2, 4], [1, 2], [9, -3], "22", "1"])
def test_runs_that_do_not_fill_the_mask_are_refused(counts):
    with pytest.raises(ValueError, match=r"must add up to the mask's size, height 2 x width 3 = 6. Received"):
        decode_mask({"size": [2, 3], "counts": counts})
