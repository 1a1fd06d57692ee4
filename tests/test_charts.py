"""Charts show the numbers they are given: lengths of bars and colours of cells are measured in the picture."""

from __future__ import annotations

import math

import numpy as np
import pytest

from kmaskformer import charts


def lengths(picture, color):
    """Longest stretch of a colour in each row of pixels that has any."""
    hits = (np.asarray(picture) == color).all(axis=-1).sum(axis=1)
    return hits[hits > 0]


def test_bars_are_as_long_as_their_values():
    picture = charts.bar_chart(["road", "sky", "car"], {"x": [0.5, 1.0, math.nan]}, bar_width=200)
    assert sorted(set(lengths(picture, charts.SERIES[0]).tolist())) == [100, 200]


def test_runs_have_bars_of_their_own_colours():
    picture = charts.bar_chart(["road"], {"A": [0.25], "B": [0.75]}, title="IoU", bar_width=200)
    for color, length in zip(charts.SERIES, (50, 150), strict=False):
        assert lengths(picture, color).max() == length


def test_cells_show_the_share_of_the_true_class():
    picture = np.asarray(charts.confusion_chart(np.array([[3, 1, 0], [0, 0, 8]]), ["a", "b"]))
    dark, light = (8, 48, 107), charts.BACKGROUND
    assert (picture == dark).all(axis=-1).sum() > 300  # all of b is void
    half = np.round(np.float64(light) * 0.5 + np.float64(dark) * 0.5)
    assert (picture == half).all(axis=-1).sum() > 300  # a quarter of a is taken for b, drawn as its square root
    many = charts.confusion_chart(np.eye(400, dtype=int), [str(i) for i in range(400)])
    assert (np.asarray(many) == dark).all(axis=-1).sum() == 4 * 400


@pytest.mark.parametrize(
    ("action", "message"),
    [
        (lambda: charts.bar_chart([], {"x": []}), r"needs rows and 1\.\.4 series. Received: 0 rows, 1 series"),
        (lambda: charts.bar_chart(["a"], {"x": [1, 2]}), r"one value per row \(1\). Received: \{'x': 2\}"),
        (lambda: charts.confusion_chart(np.zeros((2, 4)), ["a", "b"]), r"one row per class \(2\).*shape \(2, 4\)"),
    ],
)
def test_errors(action, message):
    with pytest.raises(ValueError, match=message):
        action()
