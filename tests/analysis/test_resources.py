"""What is made of measurements, with clocks and counters that are known, and that models can be measured."""

from __future__ import annotations

import numpy as np

from kmaskformer.analysis import resources


def test_time_by_part(maskformer):
    seconds = resources.time_parts(maskformer, (32, 64), repeats=2)
    assert list(seconds) == ["backbone", "pixel_decoder", "transformer_decoder", "heads", "total"]
    assert all(value > 0 for name, value in seconds.items() if name != "heads")


def test_medians_without_the_first_turn(maskformer, monkeypatch):
    """Four parts in turn: the first turn is thrown away, and the rest of the total is the heads'."""
    turns = [[9, 9, 9, 99], [1, 2, 3, 10], [3, 2, 1, 12], [2, 2, 8, 11]]
    times = iter([float(value) for turn in turns for value in turn])
    monkeypatch.setattr(resources, "_seconds", lambda call: next(times))
    seconds = resources.time_parts(maskformer, (32, 64), repeats=3)
    assert seconds == {"backbone": 2, "pixel_decoder": 2, "transformer_decoder": 3, "heads": 4, "total": 11}


def test_memory(maskformer, monkeypatch):
    peaks = iter([1000, 5000])
    monkeypatch.setattr(resources, "_peak_bytes", lambda reset=False: next(peaks))
    found = resources.measure_memory(maskformer, (32, 64))
    assert found["weights"] == sum(4 * int(np.prod(weight.shape)) for weight in maskformer.weights)
    assert found["forward_peak"] == 4000
