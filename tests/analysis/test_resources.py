"""Time and memory are measured, so only their relations are certain."""

from __future__ import annotations

import numpy as np

from kmaskformer.analysis.resources import measure_memory, time_parts


def test_time_by_part(maskformer):
    seconds = time_parts(maskformer, (32, 64), repeats=2)
    assert list(seconds) == ["backbone", "pixel_decoder", "transformer_decoder", "heads", "total"]
    assert all(value > 0 for name, value in seconds.items() if name != "heads") and seconds["heads"] >= 0


def test_memory(maskformer):
    found = measure_memory(maskformer, (32, 64))
    assert found["weights"] == sum(4 * int(np.prod(weight.shape)) for weight in maskformer.weights)
    assert found["forward_peak"] >= 0
