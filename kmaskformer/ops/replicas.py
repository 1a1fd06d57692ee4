"""All arithmetic across replicas of a data-parallel run.

Under a `tf.distribute` strategy these functions act within its replica context. Elsewhere there is one replica: on
other backends, and outside a strategy.
"""

from __future__ import annotations

from typing import Any

import keras

Tensor = Any


def num_replicas() -> int:
    """Number of replicas that take part in the current step."""
    context = _replica_context()
    return 1 if context is None else context.num_replicas_in_sync


def sum_over_replicas(value: Tensor) -> Tensor:
    """Sum of a tensor over all replicas, the same on each; `value` itself where there is one.

    Every replica must call it equally often and in the same order. No gradient should be taken through it.
    """
    if num_replicas() == 1:
        return value
    return _replica_context().all_reduce("SUM", value)


def _replica_context() -> Any | None:
    """The replica context of TensorFlow; None on other backends and outside of a replica."""
    if keras.backend.backend() != "tensorflow":
        return None
    import tensorflow as tf

    return tf.distribute.get_replica_context()
