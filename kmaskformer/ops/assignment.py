"""Exact rectangular assignment of targets to queries, batched and inside the graph.

A shortest-augmenting-path search with potentials: targets are rows, queries are columns, every problem of the batch
runs its own sequence of searches, and one loop advances all of them by one settled column per turn. Work over the
queries is in vectors, so a problem costs at most O(targets² · queries), and the loop ends as soon as the last problem
of the batch is complete. It is written in `keras.ops` alone and runs eagerly, in graphs and under XLA.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import keras
import numpy as np
from keras import ops

Tensor = Any

_LARGEST = 3.4e38
_NEVER = float("inf")


class _Problems(NamedTuple):
    """What does not change during the search. Rows of all problems share one flat numbering, `targets + 1` each.

    `costs`: `(batch · (targets + 1), columns)`, the last row of each problem is a dummy that idle problems search.
    `queue`: `(batch · (targets + 1),)` int32, the rows of each problem, unassigned ones first.
    `num_pending`: `(batch,)` int32, rows that still need a search. `first_row`: `(batch,)` int32.
    `dummy_row`: `(batch,)` int32. `blocked`: `(batch, columns)` bool, columns that do not exist for a problem.
    """

    costs: Tensor
    queue: Tensor
    num_pending: Tensor
    first_row: Tensor
    dummy_row: Tensor
    blocked: Tensor


class _Search(NamedTuple):
    """State of the loop; one search per problem.

    `position`: `(batch,)` int32, searches completed. `row`: `(batch,)` int32, row whose columns are relaxed next.
    `reach`: `(batch, columns)`, length of the paths through `row`. `distance`, `parent`: `(batch, columns)`, shortest
    path found so far and its last row. `settled`: `(batch, columns)` bool. `owner`: `(batch, columns)` int32, row
    assigned to a column or -1. `potential`: `(batch, columns)`, dual variable of a column. `paths`:
    `(batch · (targets + 1), columns)` bool, the columns on the path that led to a row.
    """

    position: Tensor
    row: Tensor
    reach: Tensor
    distance: Tensor
    parent: Tensor
    settled: Tensor
    owner: Tensor
    potential: Tensor
    paths: Tensor


def solve_assignment(costs: Tensor, valid: Tensor) -> Tensor:
    """Assigns queries to targets at the lowest total cost, for each problem of a batch.

    In each problem `min(queries, number of valid targets)` pairs are made; where there are more valid targets than
    queries, the pairs of lowest total cost are made and the other targets stay without a query. Costs first pass
    `guard_costs`, so any input ends. No gradient flows through the result.

    Args:
        costs: `(batch, queries, targets)`, computed in float32.
        valid: `(batch, targets)` bool, False where the table of targets is padded; need not be a prefix.

    Returns:
        `(batch, targets)` int32: the query of each target, -1 for a target without one.

    References:
        R. Jonker, A. Volgenant: A shortest augmenting path algorithm for dense and sparse linear assignment problems
        (Computing 38, 1987). D. F. Crouse: On implementing 2D rectangular assignment algorithms (2016).
    """
    costs, valid = ops.convert_to_tensor(costs), ops.cast(valid, "bool")
    batch, num_queries, num_targets = ops.shape(costs)
    if any(isinstance(size, int) and size == 0 for size in (batch, num_queries, num_targets)):
        return ops.full((batch, num_targets), -1, dtype="int32")
    solve = _compiled_solve() if _pays_to_compile(costs.shape) else _solve
    return solve(costs, valid)


def _solve(costs: Tensor, valid: Tensor) -> Tensor:
    num_queries, num_targets = ops.shape(costs)[1:]
    rows = ops.transpose(_scale_down(guard_costs(ops.stop_gradient(costs))), (0, 2, 1))
    rows = ops.where(valid[:, :, None], rows, 0.0)
    rows, blocked = _add_dummy_columns(rows, valid)
    problems, search = _start(rows, valid, blocked)
    search = ops.while_loop(
        lambda *state: ops.any(_Search(*state).position < problems.num_pending),
        lambda *state: tuple(_advance(problems, _Search(*state))),
        tuple(search),
        maximum_iterations=num_targets * num_targets,
    )
    return _query_of_row(_Search(*search).owner, problems.first_row, num_queries, num_targets)


def _pays_to_compile(shape: tuple[int | None, ...]) -> bool:
    """Whether XLA should compile the search by itself: in TensorFlow's graphs, where each small operation of the loop
    otherwise costs more than its work, and where a static shape means one compilation."""
    if keras.backend.backend() != "tensorflow" or None in tuple(shape):
        return False
    import tensorflow as tf

    return not tf.executing_eagerly()


@functools.cache
def _compiled_solve() -> Any:
    import tensorflow as tf

    return tf.function(_solve, jit_compile=True, autograph=False)


def solve_assignment_on_host(costs: Tensor, valid: Tensor) -> Tensor:
    """`solve_assignment` by `scipy.optimize.linear_sum_assignment`, called back from the graph on the host.

    TensorFlow runs it as a Python function, which XLA cannot compile: a model that uses it must be compiled with
    `jit_compile=False`, cannot be exported, and waits for the device at every step. JAX can call it within `jit`.

    Args:
        costs: `(batch, queries, targets)`; passes `guard_costs` first.
        valid: `(batch, targets)` bool.

    Returns:
        `(batch, targets)` int32: the query of each target, -1 for a target without one.
    """
    costs, valid = guard_costs(ops.stop_gradient(costs)), ops.cast(valid, "bool")
    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        queries = tf.numpy_function(_solve_with_scipy, [costs, valid], tf.int32, stateful=False)
        return tf.ensure_shape(queries, valid.shape)
    if keras.backend.backend() == "jax":
        import jax

        result = jax.ShapeDtypeStruct(valid.shape, "int32")
        return jax.pure_callback(_solve_with_scipy, result, costs, valid)
    queries = _solve_with_scipy(ops.convert_to_numpy(costs), ops.convert_to_numpy(valid))
    return ops.convert_to_tensor(queries)


def _solve_with_scipy(costs: np.ndarray, valid: np.ndarray) -> np.ndarray:
    """`(batch, targets)` int32 for finite costs `(batch, queries, targets)`."""
    from scipy.optimize import linear_sum_assignment  # a tenth of a second that servers need not wait

    costs, valid = np.asarray(costs), np.asarray(valid)
    result = np.full(valid.shape, -1, dtype=np.int32)
    for problem, is_valid, queries in zip(costs, valid, result, strict=True):
        targets = np.flatnonzero(is_valid)
        rows, columns = linear_sum_assignment(problem[:, targets])
        queries[targets[columns]] = rows
    return result


def guard_costs(costs: Tensor) -> Tensor:
    """Replaces entries that are not finite; finite entries are returned as they are.

    NaN and +inf become `high + n · (high - low) + |high| + 1`, where high and low are the largest and smallest finite
    entry of the problem and n its number of queries or targets, whichever is smaller: an assignment that avoids one
    such entry more is always cheaper, and the values stay small enough for float32 to tell the finite ones apart.
    -inf becomes the mirror image, below low. A problem without any finite entry has high = low = 0.

    Args:
        costs: `(batch, queries, targets)`.

    Returns:
        `(batch, queries, targets)` float32, finite (±3.4e38 at most).
    """
    costs = ops.cast(costs, "float32")
    finite = ops.isfinite(costs)
    low, high = _finite_range(costs, finite)
    num_pairs = ops.cast(ops.minimum(*ops.shape(costs)[1:]), "float32")
    margin = num_pairs * (high - low) + 1.0
    worst = ops.minimum(high + margin + ops.abs(high), _LARGEST)
    best = ops.maximum(low - margin - ops.abs(low), -_LARGEST)
    return ops.where(finite, costs, ops.where(costs == -_NEVER, best, worst))


def _finite_range(costs: Tensor, finite: Tensor) -> tuple[Tensor, Tensor]:
    """Smallest and largest finite entry of each problem, `(batch, 1, 1)`; 0 where there is none."""
    low = ops.min(ops.where(finite, costs, _NEVER), axis=(1, 2), keepdims=True)
    high = ops.max(ops.where(finite, costs, -_NEVER), axis=(1, 2), keepdims=True)
    exists = low <= high
    return ops.where(exists, low, 0.0), ops.where(exists, high, 0.0)


def _scale_down(costs: Tensor) -> Tensor:
    """Keeps sums of costs from overflowing: problems with huge entries are multiplied by an (exact) power of two."""
    largest = ops.max(ops.abs(costs), axis=(1, 2), keepdims=True)
    return costs * ops.where(largest > 2.0**60, 2.0**-80, 1.0)


def _add_dummy_columns(rows: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
    """Adds columns for the targets that must stay without a query, if there can be any.

    A problem gets exactly as many open dummy columns as it has valid targets too many. All of them are then used
    whatever they cost, so they cost as much as the cheapest pair: no large constant, which in float32 would swallow the
    differences of the real costs.

    Args:
        rows: `(batch, targets, queries)`.
        valid: `(batch, targets)` bool.

    Returns:
        Costs `(batch, targets, columns)` and `blocked`, `(batch, columns)` bool.
    """
    batch, num_targets, num_queries = ops.shape(rows)
    surplus = ops.sum(ops.cast(valid, "int32"), axis=1, keepdims=True) - num_queries
    num_dummies = num_targets - num_queries
    num_dummies = max(num_dummies, 0) if isinstance(num_dummies, int) else ops.maximum(num_dummies, 0)
    lowest = ops.min(ops.where(valid[:, :, None], rows, ops.max(rows)), axis=(1, 2), keepdims=True)
    dummies = ops.broadcast_to(lowest, (batch, num_targets, num_dummies))
    columns = ops.arange(num_queries + num_dummies, dtype="int32")[None, :] - num_queries
    return ops.concatenate([rows, dummies], axis=2), columns >= ops.maximum(surplus, 0)


def _start(rows: Tensor, valid: Tensor, blocked: Tensor) -> tuple[_Problems, _Search]:
    """Gives each row its cheapest column where no earlier row claims it, and queues the other rows for a search.

    With potentials of 0 this is optimal for the rows assigned so far, so the searches can continue from it.
    """
    batch, num_targets, num_columns = ops.shape(rows)
    first_row = ops.arange(batch, dtype="int32") * (num_targets + 1)
    row_ids = first_row[:, None] + ops.arange(num_targets + 1, dtype="int32")[None, :]
    owner, is_assigned = _claim_cheapest(rows, valid, blocked, row_ids[:, :-1])
    pending = ops.logical_and(valid, ops.logical_not(is_assigned))
    order = ops.argsort(ops.cast(ops.logical_not(pending), "int32"), axis=1)
    queue = ops.concatenate([first_row[:, None] + ops.cast(order, "int32"), row_ids[:, -1:]], axis=1)
    costs = ops.reshape(ops.pad(rows, ((0, 0), (0, 1), (0, 0))), (batch * (num_targets + 1), num_columns))
    num_pending = ops.sum(ops.cast(pending, "int32"), axis=1)
    problems = _Problems(costs, ops.reshape(queue, (-1,)), num_pending, first_row, row_ids[:, -1], blocked)
    position = ops.zeros_like(first_row)
    row = ops.take(problems.queue, first_row, axis=0)
    reach = ops.take(costs, row, axis=0)
    search = _Search(
        position=position,
        row=row,
        reach=reach,
        distance=ops.full_like(reach, _NEVER),
        parent=ops.zeros_like(owner),
        settled=blocked,
        owner=owner,
        potential=ops.zeros_like(reach),
        paths=ops.zeros_like(costs, dtype="bool"),
    )
    return problems, search


def _claim_cheapest(rows: Tensor, valid: Tensor, blocked: Tensor, row_ids: Tensor) -> tuple[Tensor, Tensor]:
    """Owner of each column, `(batch, columns)` int32 or -1, and which rows own one, `(batch, targets)` bool."""
    num_columns = ops.shape(rows)[2]
    columns = ops.arange(num_columns, dtype="int32")
    open_costs = ops.where(blocked[:, None, :], _NEVER, rows)
    lowest = ops.min(open_costs, axis=2, keepdims=True)
    cheapest = ops.min(ops.where(open_costs <= lowest, columns, num_columns), axis=2, keepdims=True)
    claims = ops.logical_and(columns == cheapest, valid[:, :, None])
    nobody = 2**31 - 1
    owner = ops.min(ops.where(claims, row_ids[:, :, None], nobody), axis=1)
    owner = ops.where(owner == nobody, -1, owner)
    return owner, ops.any(owner[:, None, :] == row_ids[:, :, None], axis=2)


def _advance(problems: _Problems, search: _Search) -> _Search:
    """One turn of the loop: relax the columns of a row, settle the nearest column, and go on from its owner.

    Where the nearest column has no owner the path is complete: it is augmented and the next row's search begins.
    Idle problems go round on their dummy row and change nothing.
    """
    closer = ops.logical_and(search.reach < search.distance, ops.logical_not(search.settled))
    distance = ops.where(closer, search.reach, search.distance)
    parent = ops.where(closer, search.row[:, None], search.parent)
    hit, lowest = _nearest_column(distance, search.settled, search.owner)
    path = ops.logical_or(ops.take(search.paths, _select(hit, parent), axis=0), hit)
    next_row = ops.max(ops.where(hit, search.owner, -1), axis=1)

    is_active = search.position < problems.num_pending
    is_found = next_row < 0
    augment = ops.logical_and(is_found, is_active)
    restart = ops.logical_or(is_found, ops.logical_not(is_active))
    owner, potential = _augment(search, augment[:, None], path, distance, parent, lowest)
    position = search.position + ops.cast(augment, "int32")
    queued_row = ops.take(problems.queue, problems.first_row + position, axis=0)
    row = ops.where(restart, queued_row, next_row)
    reduced = ops.take(problems.costs, row, axis=0) - potential
    offset = ops.where(restart, 0.0, _select(hit, reduced) - lowest[:, 0])
    written = ops.where(restart, problems.dummy_row, next_row)
    restart = restart[:, None]
    return _Search(
        position=position,
        row=row,
        reach=reduced - offset[:, None],
        distance=ops.where(restart, _NEVER, distance),
        parent=parent,
        settled=ops.where(restart, problems.blocked, ops.logical_or(search.settled, hit)),
        owner=owner,
        potential=potential,
        paths=ops.scatter_update(search.paths, written[:, None], path),
    )


def _nearest_column(distance: Tensor, settled: Tensor, owner: Tensor) -> tuple[Tensor, Tensor]:
    """One-hot `(batch, columns)` of the nearest open column, one without an owner among equals; its distance."""
    num_columns = ops.shape(distance)[1]
    columns = ops.arange(num_columns, dtype="int32")
    open_distance = ops.where(settled, _NEVER, distance)
    lowest = ops.min(open_distance, axis=1, keepdims=True)
    rank = ops.where(owner < 0, columns, columns + num_columns)
    first = ops.min(ops.where(open_distance <= lowest, rank, 2 * num_columns), axis=1, keepdims=True)
    return rank == first, lowest


def _augment(
    search: _Search, augment: Tensor, path: Tensor, distance: Tensor, parent: Tensor, lowest: Tensor
) -> tuple[Tensor, Tensor]:
    """Hands the columns of a complete path to the rows before them, and lowers the settled columns' potentials."""
    owner = ops.where(ops.logical_and(augment, path), parent, search.owner)
    lowered = search.potential + ops.minimum(distance - lowest, 0.0)
    return owner, ops.where(ops.logical_and(augment, search.settled), lowered, search.potential)


def _select(one_hot: Tensor, values: Tensor) -> Tensor:
    """The value of each problem where `one_hot` is True; exact, unlike a product on devices that round to TF32."""
    return ops.sum(ops.where(one_hot, values, 0), axis=1)


def _query_of_row(owner: Tensor, first_row: Tensor, num_queries: Any, num_targets: Any) -> Tensor:
    """Turns the owners of the columns into the query of each row, `(batch, targets)` int32 or -1."""
    row_ids = first_row[:, None] + ops.arange(num_targets, dtype="int32")
    is_pair = owner[:, None, :num_queries] == row_ids[:, :, None]
    return ops.max(ops.where(is_pair, ops.arange(num_queries, dtype="int32"), -1), axis=2)
