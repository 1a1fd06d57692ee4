"""The gradient of a batch on TensorFlow, in one go or in parts that are added up, and what is done if it is not finite.

Only `train_step` calls it, on the TensorFlow backend.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from keras import ops

from kmaskformer.ops import replicas

Tensor = Any
Terms = dict[str, Tensor]


def terms_and_gradients(
    loss_terms: Callable[[Any], Terms],
    scale: Callable[[Tensor], Tensor],
    batch: Any,
    variables: Sequence[Any],
    num_parts: int = 1,
) -> tuple[Terms, list[Tensor | None]]:
    """Loss terms of a batch, and the gradient of their scaled sum.

    Args:
        loss_terms: From a batch, or a part of one, to loss terms that add up over the parts: what they are divided by
            must be that of the whole batch.
        scale: Applied to the sum of the terms before the gradient is taken.
        batch: Nested structure of tensors `(batch, ...)`.
        variables: What the gradient is taken with respect to.
        num_parts: Number of parts, worked off one after the other; only one part's activations are in memory.

    Returns:
        The terms, float32 scalars, and one gradient per variable; None where the loss does not depend on it.

    Raises:
        ValueError: If the parts cannot be of one size.
    """
    import tensorflow as tf

    def of_part(part: Any) -> tuple[Terms, list[Tensor | None]]:
        with tf.GradientTape() as tape:
            terms = loss_terms(part)
            loss = scale(total(terms))
        return terms, tape.gradient(loss, variables)

    return of_part(batch) if num_parts == 1 else _sum_over_parts(of_part, batch, variables, num_parts)


def total(terms: Terms) -> Tensor:
    """The sum of loss terms in their order; a chain of additions TensorFlow regroups, in each process differently."""
    return ops.sum(ops.stack(list(terms.values())))


def _sum_over_parts(
    of_part: Callable[[Any], tuple[Terms, list[Tensor | None]]], batch: Any, variables: Sequence[Any], num_parts: int
) -> tuple[Terms, list[Tensor | None]]:
    import tensorflow as tf

    parts = tf.nest.map_structure(lambda values: _split(values, num_parts), batch)
    # Names of the terms, and which variables have a gradient: known when the loop's body has been traced.
    names: list[str] = []
    is_used: list[bool] = []

    def add_part(index: Tensor, rows: Any, sums: list[Tensor]) -> tuple:
        terms, gradients = of_part(tf.nest.map_structure(lambda values: values[index], parts))
        names[:], is_used[:] = terms, [gradient is not None for gradient in gradients]
        sums = [s if g is None else s + tf.convert_to_tensor(g) for s, g in zip(sums, gradients, strict=True)]
        return index + 1, rows.write(index, tf.stack(list(terms.values()))), sums

    # A loop, not `num_parts` copies in the graph: TensorFlow would run copies side by side, with all their activations.
    rows = tf.TensorArray("float32", size=num_parts, infer_shape=True)
    zeros = [tf.zeros(variable.shape, variable.dtype) for variable in variables]
    _, rows, sums = tf.while_loop(
        lambda index, *_: index < num_parts,
        add_part,
        (tf.constant(0), rows, zeros),
        parallel_iterations=1,
        maximum_iterations=num_parts,
    )
    terms = dict(zip(names, tf.unstack(tf.reduce_sum(rows.stack(), axis=0), num=len(names)), strict=True))
    return terms, [summed if used else None for summed, used in zip(sums, is_used, strict=True)]


def _split(values: Tensor, num_parts: int) -> Tensor:
    """`(batch, ...)` to `(parts, batch / parts, ...)`."""
    import tensorflow as tf

    values = tf.convert_to_tensor(values)
    size = values.shape[0]
    if size is not None and size % num_parts:
        raise ValueError(
            f"`accumulation_steps` must divide the batch of each replica. Received: {num_parts} and {size} images"
        )
    shape = tf.concat([[num_parts, tf.shape(values)[0] // num_parts], tf.shape(values)[1:]], axis=0)
    parts = tf.reshape(values, shape)
    parts.set_shape((num_parts, size and size // num_parts, *values.shape[1:]))
    return parts


def agree_on_finite(loss: Tensor, gradients: Sequence[Tensor | None], check_gradients: bool) -> list[Tensor | None]:
    """The gradients, the first of them NaN where this replica's loss is not finite; the sum over replicas then is, too.

    Args:
        loss: Scalar, this replica's loss.
        gradients: This replica's gradients; None where the loss does not depend on the variable.
        check_gradients: Whether the first is NaN on every replica where the loss or a gradient of any one is not
            finite. Keras' loss scaling asks the first replica alone whether to skip an update, before gradients are
            summed.

    Returns:
        As many gradients; all but the first unchanged.
    """
    import tensorflow as tf

    is_finite = tf.math.is_finite(loss)
    if check_gradients and replicas.num_replicas() > 1:
        checks = [tf.reduce_all(tf.math.is_finite(gradient)) for gradient in gradients if gradient is not None]
        is_finite = tf.reduce_all([is_finite, *checks])
        is_finite = replicas.sum_over_replicas(tf.cast(~is_finite, "float32")) == 0.0
    first = next((index for index, gradient in enumerate(gradients) if gradient is not None), None)
    marked = list(gradients)
    if first is not None:
        marked[first] = tf.where(is_finite, marked[first], float("nan"))
    return marked
