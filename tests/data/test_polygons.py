"""Outlines against COCO's official tool and by hand."""

from __future__ import annotations

import numpy as np
import pytest

from kmaskformer.data.polygons import polygon_mask


def outlines(rng):
    """Random, whole-numbered, on a hundredth grid and star-shaped outlines, partly outside the image."""
    for kind in range(200):
        height, width, count = (int(value) for value in rng.integers((1, 1, 3), (80, 80, 30)))
        angles, radii = np.sort(rng.uniform(0, 2 * np.pi, count)), rng.uniform(5, 40, count)
        star = np.stack([width / 2 + radii * np.cos(angles), height / 2 + radii * np.sin(angles)], axis=1)
        choices = (
            rng.uniform(-10, 100, 2 * count),
            rng.integers(-5, 90, 2 * count).astype(float),
            np.round(rng.uniform(0, 1, 2 * count) * np.tile([width, height], count), 2),
            star.ravel(),
        )
        yield choices[kind % 4], height, width


def test_masks_are_those_of_pycocotools(rng):
    tools = pytest.importorskip("pycocotools.mask")
    for polygon, height, width in outlines(rng):
        expected = tools.decode(tools.frPyObjects([polygon.tolist()], height, width))[..., 0]
        np.testing.assert_array_equal(polygon_mask([polygon], height, width), expected)


def test_rectangle():
    """Pixels whose centre is inside: columns 1 to 3, rows 2 and 3."""
    mask = polygon_mask([np.array([1, 2, 4, 2, 4, 4, 1, 4])], 6, 7)
    assert np.argwhere(mask).tolist() == [[row, column] for row in (2, 3) for column in (1, 2, 3)]


def test_parts_are_united_and_an_outline_that_meets_itself_leaves_a_hole():
    square = np.array([0, 0, 2, 0, 2, 2, 0, 2.0])
    assert polygon_mask([square, square + 1], 4, 4).sum() == 7
    with_hole = np.array([0, 0, 5, 0, 5, 5, 0, 5, 0, 0, 1, 1, 4, 1, 4, 4, 1, 4, 1, 1.0])
    assert polygon_mask([with_hole], 5, 5).sum() == 16


def test_outside_and_between_the_pixels():
    assert not polygon_mask([np.array([10, 10, 20, 10, 20, 20.0])], 5, 5).any()
    assert not polygon_mask([np.array([1.1, 1.1, 1.3, 1.1, 1.3, 1.3])], 5, 5).any()
    assert not polygon_mask([], 5, 5).any()
