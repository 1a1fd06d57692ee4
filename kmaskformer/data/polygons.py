"""Outlines as masks, pixel by pixel those of COCO's official tool, on which its published scores rest."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

_GRID = 5
"""Outlines are rounded to fifths of a pixel; a pixel's centre lies on the third of its five columns and rows."""


def polygon_mask(polygons: Sequence[np.ndarray], height: int, width: int) -> np.ndarray:
    """The union of closed outlines.

    Args:
        polygons: Each `(2 * points,)` x and y in turn, in pixels from the image's upper left corner.
        height: Height of the mask.
        width: Width of the mask.

    Returns:
        `(height, width)` bool.
    """
    mask = np.zeros((height, width), bool)
    for polygon in polygons:
        mask |= _filled(np.asarray(polygon, np.float64).reshape(-1, 2), height, width)
    return mask


def _filled(points: np.ndarray, height: int, width: int) -> np.ndarray:
    """Goes down one column after the other and changes sides at every crossing of the outline."""
    columns, rows = _crossings(*_grid_points(points))
    inside = (columns >= 0) & (columns < width)
    places = np.sort(columns[inside] * height + np.clip(rows[inside], 0, height))
    runs = np.diff(places, prepend=0, append=height * width)
    return np.repeat(np.arange(len(runs)) % 2 == 1, runs).reshape(width, height).T


def _crossings(x: np.ndarray, y: np.ndarray, edge: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Pixel columns whose centre line an edge crosses, and the first row below the edge in each."""
    left, upper = np.minimum(x[1:], x[:-1]), np.minimum(y[1:], y[:-1])
    # The centre line runs between this column of the grid and the next.
    crosses = (edge[1:] == edge[:-1]) & (x[1:] != x[:-1]) & (left % _GRID == _GRID // 2)
    rows = np.ceil((upper[crosses] + 0.5) / _GRID - 0.5).astype(np.int64)
    return left[crosses] // _GRID, rows


def _grid_points(points: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """x and y of the grid points along the outline, one for each step along an edge's longer axis, and the edge."""
    # Conversion to integers cuts fractions off towards zero, also of points left of or above the image.
    start = (points * _GRID + 0.5).astype(np.int64)
    end = np.roll(start, -1, axis=0)
    is_steep = np.abs(end - start)[:, 1] > np.abs(end - start)[:, 0]
    start[is_steep], end[is_steep] = start[is_steep, ::-1], end[is_steep, ::-1]
    # Edges are walked in increasing order, so that rounding does not depend on the outline's direction.
    is_backward = start[:, 0] > end[:, 0]
    start[is_backward], end[is_backward] = end[is_backward], start[is_backward]
    length, rise = (end - start).T
    edge = np.repeat(np.arange(len(start)), length + 1)
    step = np.arange(len(edge)) - np.repeat(np.cumsum(length + 1) - length - 1, length + 1)
    slope = rise / np.maximum(length, 1)
    along, across = start[edge, 0] + step, (start[edge, 1] + slope[edge] * step + 0.5).astype(np.int64)
    steep = is_steep[edge]
    return np.where(steep, across, along), np.where(steep, along, across), edge
