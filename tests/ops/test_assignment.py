"""The in-graph solver against SciPy: complete, valid, and at the same cost."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf
from scipy.optimize import linear_sum_assignment

from kmaskformer.ops.assignment import guard_costs, solve_assignment, solve_assignment_on_host

SIZES = [(25, 10), (12, 12), (7, 12), (1, 5), (40, 4)]
KINDS = ["uniform", "ties", "similar", "wide", "shifted", "negative", "not_finite"]
NUM_PROBLEMS = 10_000

MODES = {
    "eager": solve_assignment,
    "graph": tf.function(solve_assignment, autograph=False),
    "xla": tf.function(solve_assignment, jit_compile=True, autograph=False),
}


def random_costs(kind: str, count: int, num_queries: int, num_targets: int, rng: np.random.Generator) -> np.ndarray:
    costs = rng.random((count, num_queries, num_targets))
    if kind == "ties":
        costs = np.floor(costs * 4)
    elif kind == "similar":
        costs = rng.random((count, num_queries, 1)) + rng.random((count, 1, num_targets)) + 0.02 * costs
    elif kind == "wide":
        costs = 10.0 ** (12 * costs - 6)
    elif kind == "shifted":
        costs = costs + 1000
    elif kind == "negative":
        costs = -costs * 50
    elif kind == "not_finite":
        bad = rng.choice([np.nan, np.inf, -np.inf], size=costs.shape)
        costs = np.where(rng.random(costs.shape) < rng.choice([0.05, 0.5, 1.0], size=(count, 1, 1)), bad, costs)
    return costs.astype(np.float32)


def random_problems(num_queries: int, num_targets: int, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Costs `(count, queries, targets)` of all kinds, and which targets are valid: all, some anywhere, or none."""
    rng = np.random.default_rng(num_queries * 1000 + num_targets)
    parts = np.array_split(np.arange(count), len(KINDS))
    costs = [
        random_costs(kind, len(part), num_queries, num_targets, rng) for kind, part in zip(KINDS, parts, strict=True)
    ]
    keep = rng.choice([0.0, 0.3, 0.7, 1.0], size=(count, 1), p=[0.05, 0.2, 0.35, 0.4])
    return np.concatenate(costs), rng.random((count, num_targets)) < keep


def scipy_totals(costs: np.ndarray, valid: np.ndarray) -> np.ndarray:
    totals = np.zeros(len(costs))
    for index, (matrix, is_valid) in enumerate(zip(costs.astype(np.float64), valid, strict=True)):
        rows, columns = linear_sum_assignment(matrix[:, is_valid])
        totals[index] = matrix[:, is_valid][rows, columns].sum()
    return totals


def check(costs: np.ndarray, valid: np.ndarray, queries: np.ndarray, expected: np.ndarray | None = None) -> None:
    """Complete, valid, and as cheap as SciPy's (1e-6 relative, summed in float64 over the guarded float32 costs)."""
    guarded = np.asarray(guard_costs(costs)).astype(np.float64)
    num_queries = costs.shape[1]
    assert queries.dtype == np.int32 and queries.shape == valid.shape
    assert np.all((queries >= -1) & (queries < num_queries))
    assert np.all(queries[~valid] == -1)
    np.testing.assert_array_equal((queries >= 0).sum(1), np.minimum(valid.sum(1), num_queries))
    used = (queries[:, None, :] == np.arange(num_queries)[None, :, None]).sum(2)
    assert used.max(initial=0) <= 1
    chosen = np.take_along_axis(guarded, np.maximum(queries, 0)[:, None, :], axis=1)[:, 0]
    totals = np.where(queries >= 0, chosen, 0.0).sum(1)
    expected = scipy_totals(guarded, valid) if expected is None else expected
    np.testing.assert_allclose(totals, expected, rtol=1e-6, atol=1e-30)


@pytest.mark.parametrize(("num_queries", "num_targets"), SIZES)
def test_random_problems_cost_the_same_as_scipys(num_queries, num_targets):
    costs, valid = random_problems(num_queries, num_targets, NUM_PROBLEMS // len(SIZES))
    expected = scipy_totals(np.asarray(guard_costs(costs)), valid)
    for solve in MODES.values():
        check(costs, valid, np.asarray(solve(costs, valid)), expected)


@pytest.mark.parametrize("mode", ["graph", "xla"])
def test_shapes_known_only_at_run_time(mode):
    spec = [tf.TensorSpec((None, None, None), tf.float32), tf.TensorSpec((None, None), tf.bool)]
    solve = tf.function(solve_assignment, input_signature=spec, jit_compile=mode == "xla", autograph=False)
    for num_queries, num_targets in [(5, 3), (3, 5), (4, 4)]:
        costs, valid = random_problems(num_queries, num_targets, 21)
        check(costs, valid, solve(costs, valid).numpy())


def test_many_targets():
    costs, valid = random_problems(60, 60, 7)
    check(costs, valid, MODES["xla"](costs, valid).numpy())


def test_host_solver_agrees():
    costs, valid = random_problems(6, 9, 40)
    check(costs, valid, solve_assignment_on_host(costs, valid).numpy())
    in_graph = tf.function(solve_assignment_on_host, autograph=False)(costs, valid)
    assert in_graph.shape == (40, 9)
    check(costs, valid, in_graph.numpy())


@pytest.mark.parametrize("shape", [(2, 5, 0), (2, 0, 3), (0, 5, 3)])
def test_empty_sides(shape):
    queries = solve_assignment(np.zeros(shape, np.float32), np.ones((shape[0], shape[2]), bool))
    assert queries.shape == (shape[0], shape[2])
    assert np.all(np.asarray(queries) == -1)


def test_known_assignment():
    costs = np.array([[[4.0, 1.0], [2.0, 0.0], [3.0, 2.0]]], np.float32)
    np.testing.assert_array_equal(solve_assignment(costs, np.array([[True, True]])), [[1, 0]])
    np.testing.assert_array_equal(solve_assignment(costs, np.array([[False, True]])), [[-1, 1]])


def test_surplus_targets_leave_the_dearest_pairs_out():
    costs = np.array([[[5.0, 1.0, 3.0, 0.5], [4.0, 9.0, 2.0, 0.6]]], np.float32)
    np.testing.assert_array_equal(solve_assignment(costs, np.ones((1, 4), bool)), [[-1, 0, -1, 1]])
    np.testing.assert_array_equal(solve_assignment(costs, np.array([[1, 1, 1, 0]], bool)), [[-1, 0, 1, -1]])


def test_padding_does_not_influence_the_result():
    costs, valid = random_problems(9, 7, 28)
    costs = np.nan_to_num(costs, posinf=1.0, neginf=0.0)
    reference = solve_assignment(costs, valid)
    spoilt = np.where(valid[:, None, :], costs, 1e20).astype(np.float32)
    np.testing.assert_array_equal(solve_assignment(spoilt, valid), reference)


def test_constant_and_huge_costs():
    for value in (0.0, 1.0, -3e38, 3e38):
        costs = np.full((2, 6, 4), value, np.float32)
        queries = np.asarray(solve_assignment(costs, np.ones((2, 4), bool)))
        assert all(len(set(row)) == 4 and min(row) >= 0 for row in queries.tolist())


def test_guard_changes_only_what_is_not_finite():
    costs = np.array([[[1.0, np.nan, 3.0], [np.inf, 2.0, -np.inf]]], np.float32)
    guarded = np.asarray(guard_costs(costs))
    # n = 2, high = 3, low = 1: worst 3 + 4 + 3 + 1, best 1 - 4 - 1 - 1
    np.testing.assert_array_equal(guarded, [[[1.0, 11.0, 3.0], [11.0, 2.0, -5.0]]])
    assert np.isfinite(np.asarray(guard_costs(np.full((1, 2, 2), np.nan, np.float32)))).all()
    assert np.isfinite(np.asarray(guard_costs(np.array([[[3.4e38, -3.4e38], [np.nan, -np.inf]]], np.float32)))).all()


def test_fewest_entries_that_are_not_finite():
    costs = np.array([[[0.0, 1000.0], [1000.0, np.inf]]], np.float32)
    np.testing.assert_array_equal(solve_assignment(costs, np.ones((1, 2), bool)), [[1, 0]])


def test_no_gradient_flows():
    costs = tf.constant(np.random.default_rng(0).random((1, 3, 2)), dtype=tf.float32)
    with tf.GradientTape() as tape:
        tape.watch(costs)
        queries = tf.cast(solve_assignment(costs, np.ones((1, 2), bool)), tf.float32)
    assert tape.gradient(queries, costs) is None
