"""Painted textures of the stuff in generated scenes, and the smooth noise that they are made of."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

BaseColor = Callable[[], np.ndarray]
"""Draws the base colour of a texture, `(3,)` float32 0..255."""


def smooth_noise(rng: np.random.Generator, height: int, width: int, cell: tuple[float, float]) -> np.ndarray:
    """Smooth noise in -1..1 whose blobs are `cell` pixels high and wide: a random grid, linearly interpolated."""
    (above, down), (left, right) = _knots(height, cell[0]), _knots(width, cell[1])
    grid = rng.uniform(-1, 1, (above[-1] + 2, left[-1] + 2)).astype(np.float32)
    # Not as a product of matrices: the threads of a BLAS library take the cores from the training beside it.
    rows = grid[above] + down[:, None] * (grid[above + 1] - grid[above])
    return rows[:, left] + right * (rows[:, left + 1] - rows[:, left])


def _knots(size: int, cell: float) -> tuple[np.ndarray, np.ndarray]:
    """For each of `size` pixels the knot before it, knots being `cell` pixels apart, and its way to the next, 0..1."""
    position = np.arange(size, dtype=np.float32) / max(cell, 1.0)
    before = position.astype(np.int64)
    return before, (position - before).astype(np.float32)


def shade(base: np.ndarray, brightness: np.ndarray) -> np.ndarray:
    """`base` colour times `1 + brightness`, `(height, width, 3)`."""
    return base * (1 + brightness[..., None])


def _sky(rng: np.random.Generator, base: BaseColor, height: int, width: int, unit: float) -> np.ndarray:
    rows = np.linspace(0, 1, height, dtype=np.float32)[:, None, None]
    paint = base() * (1 - 0.5 * rows) + np.float32(245) * 0.5 * rows
    clouds = smooth_noise(rng, height, width, (14 * unit, 34 * unit))
    clouds = clouds + 0.5 * smooth_noise(rng, height, width, (6 * unit, 14 * unit))
    cover = np.clip(clouds * 1.1 - rng.uniform(0.0, 0.8), 0, 0.85)[..., None]
    return paint * (1 - cover) + np.float32(250) * cover


def _grass(rng: np.random.Generator, base: BaseColor, height: int, width: int, unit: float) -> np.ndarray:
    blades = 0.20 * smooth_noise(rng, height, width, (5 * unit, 1.5 * unit))
    patches = 0.22 * smooth_noise(rng, height, width, (18 * unit, 26 * unit))
    return shade(base(), blades + patches)


def _water(rng: np.random.Generator, base: BaseColor, height: int, width: int, unit: float) -> np.ndarray:
    rows = np.arange(height, dtype=np.float32)[:, None] / unit
    swell = smooth_noise(rng, height, width, (12 * unit, 30 * unit))
    ripples = 0.13 * np.sin(rows * rng.uniform(0.7, 1.1) + 3.0 * swell) + 0.08 * swell
    glints = np.clip(smooth_noise(rng, height, width, (1.6 * unit, 7 * unit)) - 0.55, 0, 1)
    return shade(base(), ripples + 1.6 * glints)


def _bricks(rng: np.random.Generator, base: BaseColor, height: int, width: int, unit: float) -> np.ndarray:
    course = rng.uniform(8, 12) * unit
    down = (np.arange(height, dtype=np.float32)[:, None] + rng.uniform(0, course)) / course
    row = np.floor(down).astype(int)
    along = (np.arange(width)[None] + rng.uniform(0, course)) / (2.2 * course) + 0.5 * (row % 2)
    column = np.floor(along).astype(int)
    tones = rng.normal(0, 0.10, (row.max() + 1, column.max() + 2))
    grain = 0.07 * smooth_noise(rng, height, width, (2 * unit, 2 * unit))
    paint = shade(base(), tones[row, column] + grain)
    mortar = ((along % 1.0) < 0.08) | ((down % 1.0) < 0.16)
    paint[mortar] = rng.uniform(120, 215) + 25 * grain[mortar][:, None]
    return paint


TEXTURES = {"sky": _sky, "grass": _grass, "water": _water, "bricks": _bricks}
