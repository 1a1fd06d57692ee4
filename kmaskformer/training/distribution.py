"""Choice of the devices a run trains on: one `tf.distribute` strategy by name.

`keras.distribution` is not for use on the TensorFlow backend. Model and optimizer are created inside the strategy's
`scope()`.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import tensorflow as tf

STRATEGIES = ("none", "mirrored", "multi_worker", "tpu")


def distribution_strategy(name: str | None = None, tpu: str = "") -> tf.distribute.Strategy:
    """The strategy called `name`.

    Args:
        name: `None` or `"none"`: one device, as TensorFlow chooses it. `"mirrored"`: a replica on each GPU of this
            machine, or on each logical CPU device where there is no GPU. `"multi_worker"`: one process per machine,
            described by the environment variable `TF_CONFIG`. `"tpu"`: the cores of a TPU.
        tpu: Name or address of the TPU; empty for the one of this machine. Used by `"tpu"` only.

    Returns:
        The strategy; its `num_replicas_in_sync` is the number of replicas.

    Raises:
        ValueError: If `name` is unknown.
        RuntimeError: If `"multi_worker"` finds no `TF_CONFIG` or `"tpu"` no TPU.
    """
    if name is None or name == "none":
        return tf.distribute.get_strategy()
    if name == "mirrored":
        return tf.distribute.MirroredStrategy([device.name for device in _local_devices()])
    if name == "multi_worker":
        return _multi_worker_strategy()
    if name == "tpu":
        return _tpu_strategy(tpu)
    raise ValueError(f"`name` must be one of {', '.join(STRATEGIES)}, or None. Received: name={name!r}")


def is_chief(strategy: tf.distribute.Strategy) -> bool:
    """Whether this process is the one that writes checkpoints and logs: always, but for a second worker."""
    resolver = strategy.cluster_resolver
    if resolver is None or resolver.task_type is None:
        return True
    workers_only = "chief" not in resolver.cluster_spec().jobs
    return resolver.task_type == "chief" or (workers_only and resolver.task_type == "worker" and resolver.task_id == 0)


def any_worker(strategy: tf.distribute.Strategy, flag: bool) -> bool:
    """Whether `flag` is set in any process of the run; every process must ask equally often."""
    if not strategy.extended._in_multi_worker_mode():
        return flag
    flags = strategy.run(lambda: tf.constant(float(flag)))
    return float(strategy.reduce("SUM", flags, axis=None)) > 0


def shared_out(
    strategy: tf.distribute.Strategy, make: Callable[..., tf.data.Dataset], batch_size: int, is_of_one_size: bool
) -> tuple[tf.data.Dataset | tf.distribute.DistributedDataset, Any]:
    """Training batches for `fit`, of which each of several workers prepares its own part only.

    Sharing one dataset, every worker reads and augments all of it. That is the price where images differ in size: a
    part alone would be padded less than the whole batch, and losses that are means over pixels would differ.

    Args:
        strategy: The strategy that the model was made under.
        make: Makes the endless dataset; called with `shard=(index, count)` where there are several workers.
        batch_size: Images per batch over all replicas.
        is_of_one_size: Whether all batches have one image size.

    Returns:
        The batches, and the `skipped` of this worker's dataset.
    """
    if not strategy.extended._in_multi_worker_mode() or not is_of_one_size:
        dataset = make()
        return dataset, dataset.skipped
    parts = []

    def part(context: tf.distribute.InputContext) -> tf.data.Dataset:
        parts.append(make(shard=(context.input_pipeline_id, context.num_input_pipelines)))
        return parts[-1].rebatch(context.get_per_replica_batch_size(batch_size))

    dataset = strategy.distribute_datasets_from_function(part)
    return dataset, parts[0].skipped


def _local_devices() -> list[tf.config.LogicalDevice]:
    return tf.config.list_logical_devices("GPU") or tf.config.list_logical_devices("CPU")


def _multi_worker_strategy() -> tf.distribute.Strategy:
    if not os.environ.get("TF_CONFIG"):
        raise RuntimeError(
            "The strategy multi_worker reads the cluster from the environment variable TF_CONFIG, which is not set. "
            'Set it in every process, e.g. {"cluster": {"worker": ["host0:2222", "host1:2222"]}, '
            '"task": {"type": "worker", "index": 0}}, or use the strategy mirrored for one machine.'
        )
    return tf.distribute.MultiWorkerMirroredStrategy()


def _tpu_strategy(tpu: str) -> tf.distribute.Strategy:
    try:
        resolver = tf.distribute.cluster_resolver.TPUClusterResolver.connect(tpu)
    except (ValueError, tf.errors.OpError) as error:
        raise RuntimeError(
            f"The strategy tpu found no TPU under the name {tpu!r}. Run it on a TPU host, or use "
            f"another strategy. TensorFlow said: {error}"
        ) from error
    return tf.distribute.TPUStrategy(resolver)
