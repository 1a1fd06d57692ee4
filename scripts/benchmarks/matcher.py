"""`benchmark.py matcher`: assignments of 6 layers x 16 images at once, against SciPy and single calls."""

from __future__ import annotations

import argparse
import statistics
import time

import numpy as np

LAYERS, IMAGES, QUERIES = 6, 16, 100
TARGETS = (10, 20, 60)


def add_command(commands: argparse._SubParsersAction) -> None:
    parser = commands.add_parser("matcher", help="assignment of all layers and images against SciPy")
    parser.add_argument("--repeats", type=int, default=9)
    parser.set_defaults(run=benchmark_matcher)


def benchmark_matcher(options: argparse.Namespace) -> None:
    """The three ways take turns; equal total costs are checked in each round."""
    import tensorflow as tf
    from scipy.optimize import linear_sum_assignment

    from kmaskformer.ops.assignment import solve_assignment

    solve = tf.function(solve_assignment, jit_compile=True)
    print(f"{LAYERS} layers x {IMAGES} images x {QUERIES} queries; ratio: the baseline's time over ours")
    for targets in TARGETS:
        costs = np.random.default_rng(targets).normal(size=(LAYERS * IMAGES, QUERIES, targets)).astype("float32")
        valid = np.ones((LAYERS * IMAGES, targets), bool)
        batch, rows = (tf.constant(costs), tf.constant(valid)), tf.constant(valid[:1])
        singles = [tf.constant(one[None]) for one in costs]

        ways = {
            "all at once": lambda batch=batch: solve(*batch).numpy(),
            "one call each": lambda singles=singles, rows=rows: np.concatenate([solve(c, rows) for c in singles]),
            "SciPy": lambda costs=costs: np.stack([_by_target(*linear_sum_assignment(one.T)) for one in costs]),
        }
        times = {name: [] for name in ways}
        for turn in range(options.repeats + 1):
            totals = []
            for name, way in ways.items():
                start = time.perf_counter()
                queries = way()
                times[name].append(1000 * (time.perf_counter() - start))
                totals.append(np.take_along_axis(costs, np.asarray(queries)[:, None], axis=1).sum())
            if not np.allclose(totals, totals[0], rtol=1e-5):
                raise RuntimeError(f"the ways disagree: total costs {totals}")
            if turn == 0:
                times = {name: [] for name in ways}  # compiled now
        ours, single, scipy = (statistics.median(column) for column in times.values())
        print(
            f"{targets:3} targets: here {ours:7.2f} ms;  one call each {single:7.2f} ms, ratio {single / ours:5.2f};  "
            f"SciPy {scipy:7.2f} ms, ratio {scipy / ours:5.2f}",
            flush=True,
        )


def _by_target(targets: np.ndarray, queries: np.ndarray) -> np.ndarray:
    return queries[np.argsort(targets)]
