"""Two functions timed side by side."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np


def report(
    name: str, baseline: Callable, ours: Callable, baseline_inputs: Sequence, our_inputs: Sequence, repeats: int
) -> float:
    """Prints the time of a call of each, and returns their ratio.

    Both take turns. The time is the best of the repeats for each input, since other programs can only add to it, and
    of those the median over the inputs. Arrays are copied before each call: so they lie in the cache, like maps that
    have just been decoded or computed, for both alike.

    Args:
        name: What is measured.
        baseline: Called with each of `baseline_inputs`, a tuple of arguments.
        ours: Called with each of `our_inputs`, likewise.
        baseline_inputs: Inputs, in the same order as `our_inputs`.
        our_inputs: Inputs.
        repeats: Rounds over all inputs.
    """
    times: tuple[list[float], ...] = ([], [])
    for inputs in zip(baseline_inputs, our_inputs, strict=True):
        rounds = [
            [_seconds(function, values) for function, values in zip((baseline, ours), inputs, strict=True)]
            for _ in range(repeats)
        ]
        for record, column in zip(times, zip(*rounds, strict=True), strict=True):
            record.append(min(column))
    slow, fast = (1000 * statistics.median(record) for record in times)
    print(f"{name:48} baseline {slow:9.3f} ms   here {fast:8.3f} ms   ratio {slow / fast:5.1f}", flush=True)
    return slow / fast


def _seconds(function: Callable, values: tuple[Any, ...]) -> float:
    values = tuple(value.copy() if isinstance(value, np.ndarray) else value for value in values)
    start = time.perf_counter()
    function(*values)
    return time.perf_counter() - start
