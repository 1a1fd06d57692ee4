"""Test-time augmentation against its definition, step by step."""

from __future__ import annotations

import numpy as np
import pytest
from keras import ops

from kmaskformer.inference.augmented import Augmentation, ViewOutputs, augmented_semantic_map
from kmaskformer.inference.restore import restore_pixel_logits
from kmaskformer.inference.semantic import pixel_map, semantic_inference, semantic_map

OUTPUT = (37, 51)


def nearest(picture, shortest_edge, longest_edge):
    """A resize that keeps the numbers apart."""
    height, width = picture.shape[:2]
    scale = min(shortest_edge / min(height, width), (longest_edge or 10**9) / max(height, width))
    rows, columns = (np.arange(int(side * scale)) / scale for side in (height, width))
    return picture[rows.astype(int)][:, columns.astype(int)]


def picture_of(height, width):
    return np.arange(height * width * 3).reshape(height, width, 3)


def test_views_come_in_all_sizes_and_mirrored_from_the_resized_picture():
    picture = picture_of(20, 40)
    resized = nearest(picture, 10, None)
    views = list(Augmentation((5, 20), longest_edge=30).views(picture, resized, nearest))
    assert [(view.shape[:2], flipped) for view, flipped in views] == [
        ((5, 10), False),
        ((5, 10), True),
        ((15, 30), False),
        ((15, 30), True),
    ]
    np.testing.assert_array_equal(views[2][0], nearest(resized, 20, 30))
    np.testing.assert_array_equal(views[3][0], views[2][0][:, ::-1])


def test_views_from_the_picture_itself_keep_its_detail():
    picture = picture_of(20, 40)
    ((view, flipped),) = Augmentation((20,), flip=False, resize_twice=False).views(picture, picture[::2, ::2], nearest)
    np.testing.assert_array_equal(view, picture)
    assert not flipped


def views_of(rng, per_pixel=False):
    for (padded, image), flipped in zip((((32, 48), (30, 41)), ((64, 64), (50, 60))), (True, False), strict=True):
        grid = (padded[0] // 4, padded[1] // 4)
        outputs = {"class_logits": 3 * rng.normal(size=(1, 6, 5)), "mask_logits": 3 * rng.normal(size=(1, 6, *grid))}
        outputs = {"logits": rng.normal(size=(1, *grid, 4))} if per_pixel else outputs
        yield ViewOutputs({k: v.astype(np.float32) for k, v in outputs.items()}, padded, image, flipped)


@pytest.mark.parametrize("before_inference", [False, True])
@pytest.mark.parametrize("strip_bytes", [1, 30_000, 2**30])
def test_scores_are_mirrored_back_and_averaged_at_the_size_of_the_output(rng, before_inference, strip_bytes):
    views, scores = list(views_of(rng)), []
    for view in views:
        logits = (view.outputs["class_logits"], view.outputs["mask_logits"])
        one = semantic_inference(*logits, view.padded_size, view.image_size, OUTPUT, before_inference)
        one = ops.convert_to_numpy(one)
        scores.append(one[..., ::-1] if view.flipped else one)
    expected = semantic_map(np.mean(scores, axis=0))
    maps = augmented_semantic_map(views, OUTPUT, before_inference, strip_bytes)
    np.testing.assert_allclose(ops.convert_to_numpy(maps[1]), ops.convert_to_numpy(expected[1]), atol=1e-6)
    assert (ops.convert_to_numpy(maps[0]) != ops.convert_to_numpy(expected[0])).mean() < 0.002


def test_logits_of_per_pixel_models_are_averaged(rng):
    views = list(views_of(rng, per_pixel=True))
    first, second = (
        ops.convert_to_numpy(restore_pixel_logits(view.outputs["logits"], view.image_size, OUTPUT)) for view in views
    )
    expected = pixel_map((first[..., ::-1] + second) / 2)
    class_map, confidence = augmented_semantic_map(views, OUTPUT)
    np.testing.assert_array_equal(ops.convert_to_numpy(class_map), ops.convert_to_numpy(expected[0]))
    np.testing.assert_allclose(ops.convert_to_numpy(confidence), ops.convert_to_numpy(expected[1]), atol=1e-6)


@pytest.mark.parametrize("edges", [{"shortest_edges": ()}, {"shortest_edges": (5, 0)}])
def test_errors(edges):
    with pytest.raises(ValueError, match=r"needs `shortest_edges`, and all edges must be positive.*Received: shortest"):
        Augmentation(**edges)
