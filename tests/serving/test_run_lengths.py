"""COCO's run lengths against pycocotools."""

from __future__ import annotations

import numpy as np
import pytest

from kmaskformer.serving.run_lengths import encode_mask


@pytest.mark.parametrize("share", [0.0, 0.02, 0.5, 0.98, 1.0])
@pytest.mark.parametrize("size", [(1, 1), (7, 5), (120, 200)])
def test_equals_pycocotools(rng, share, size):
    coco = pytest.importorskip("pycocotools.mask")
    mask = rng.random(size) < share
    expected = coco.encode(np.asfortranarray(mask, dtype=np.uint8))
    assert encode_mask(mask) == {"size": list(size), "counts": expected["counts"].decode()}


def test_a_large_blob(rng):
    coco = pytest.importorskip("pycocotools.mask")
    mask = np.zeros((900, 1400), bool)
    mask[100:850, 30:1300] = True
    mask[rng.integers(0, 900, 40), rng.integers(0, 1400, 40)] ^= True
    np.testing.assert_array_equal(coco.decode(encode_mask(mask)), mask)
