"""The pipeline on other machines: tf.data service workers that read and augment, for hosts too slow for their GPUs.

TensorFlow sends the pipeline's graph to the workers, but not the Python function in it that reads a sample. Each
worker therefore makes a reader from the same configuration and offers it under a name, which the graph refers to.
"""

from __future__ import annotations

import re
from typing import NamedTuple

import tensorflow as tf

_ADDRESS = re.compile(r"grpc://[^\s/:]+:\d+")


class Service(NamedTuple):
    """Where the pipeline runs.

    `address`: of the dispatcher, `grpc://host:port`. `reader_name`: under which the workers offer the dataset's reader.
    """

    address: str
    reader_name: str


def service_counters(count: int, start: int, repeat: bool) -> tf.data.Dataset:
    """Running numbers of the elements from `start`, as a plain range, which alone several workers can share out.

    Endless with `repeat`, otherwise to `count`: each pass then has the same order.
    """
    if not repeat:
        return tf.data.Dataset.range(start, count)
    numbers = tf.data.Dataset.range(start, tf.int64.max)
    return numbers.apply(tf.data.experimental.assert_cardinality(tf.data.INFINITE_CARDINALITY))


def run_remotely(elements: tf.data.Dataset, service: Service) -> tf.data.Dataset:
    """The same elements, each once, made by the service's workers, in the order in which they are ready.

    Args:
        elements: A dataset whose source is a range, which the workers share out.
        service: Where to.

    Raises:
        ValueError: If the address is not of the form `grpc://host:port`.
    """
    if not _ADDRESS.fullmatch(service.address):
        raise ValueError(
            f"`data.service` must be the dispatcher's address, grpc://host:port. Received: {service.address!r}"
        )
    policy = tf.data.experimental.service.ShardingPolicy.DYNAMIC
    return elements.apply(tf.data.experimental.service.distribute(policy, service.address))


def start_dispatcher(port: int) -> tf.data.experimental.service.DispatchServer:
    """Starts the process that shares out the work, on `port` (0: any)."""
    config = tf.data.experimental.service.DispatcherConfig(port=port)
    return tf.data.experimental.service.DispatchServer(config)


def start_worker(dispatcher: str, host: str, port: int = 0) -> tf.data.experimental.service.WorkerServer:
    """Starts a worker.

    Args:
        dispatcher: `host:port` of the dispatcher, with or without `grpc://`.
        host: Name or address under which trainers reach this machine.
        port: Port to listen on; 0 for any.
    """
    config = tf.data.experimental.service.WorkerConfig(
        dispatcher_address=dispatcher.removeprefix("grpc://"), worker_address=f"{host}:%port%", port=port
    )
    return tf.data.experimental.service.WorkerServer(config)
