"""Time and memory of a model on the device at hand, measured."""

from __future__ import annotations

import resource
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import tensorflow as tf

REST = "heads"
"""Name of what is left of the whole model's time: class head, mask head, masks."""


def time_parts(model: keras.Model, image_size: tuple[int, int], batch: int = 1, repeats: int = 10) -> dict[str, float]:
    """Median seconds of a forward pass, by part.

    Each part runs as a graph of its own on the features of the part before; parts take turns, so that a busy machine
    slows all of them.

    Args:
        model: A built model of this package.
        image_size: `(height, width)` of the images.
        batch: Number of images.
        repeats: Number of measurements of each part, after one that is thrown away.

    Returns:
        Seconds by part, `"heads"` being the whole without its parts (0 where noise hides it), and `"total"`.
    """
    images = _images(image_size, batch)
    calls = {**_part_calls(model, images), "total": tf.function(lambda: model(images, training=False))}
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(repeats + 1):
        for name, call in calls.items():
            elapsed = _seconds(call)
            if turn:  # the first one traces and compiles
                seconds[name].append(elapsed)
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    total = medians.pop("total")
    return {**medians, REST: max(0.0, total - sum(medians.values())), "total": total}


def measure_memory(model: keras.Model, image_size: tuple[int, int], batch: int = 1) -> dict[str, int]:
    """Bytes of the weights, and by how much a first forward pass raises the peak of the memory in use.

    On a GPU the peak is that of TensorFlow's allocator. On a CPU it is that of the whole process, tracing included:
    only what exceeds the process' earlier peak is seen, so measure in a fresh process.

    Args:
        model: A built model of this package.
        image_size: `(height, width)` of the images.
        batch: Number of images.

    Returns:
        `weights` and `forward_peak`, in bytes.
    """
    images = _images(image_size, batch)
    weights = sum(int(np.prod(weight.shape)) * np.dtype(weight.dtype).itemsize for weight in model.weights)
    before = _peak_bytes(reset=True)
    _seconds(tf.function(lambda: model(images, training=False)))
    return {"weights": weights, "forward_peak": _peak_bytes() - before}


def _images(image_size: tuple[int, int], batch: int) -> tf.Tensor:
    values = np.random.default_rng(0).integers(0, 256, (batch, *image_size, 3), np.uint8)
    return tf.constant(values)


def _part_calls(model: Any, images: tf.Tensor) -> dict[str, Callable[[], Any]]:
    prepared = model.preprocessing(images, None)
    features = model.backbone(prepared, training=False)
    calls = {
        "backbone": tf.function(lambda: model.backbone(prepared, training=False)),
        "pixel_decoder": tf.function(lambda: model.pixel_decoder(features, training=False)),
    }
    decoder = getattr(model, "transformer_decoder", None)
    if decoder is not None:
        source = {**features, **model.pixel_decoder(features, training=False)}[decoder.in_feature]
        calls["transformer_decoder"] = tf.function(lambda: decoder(source, training=False))
    return calls


def _seconds(call: Callable[[], Any]) -> float:
    start = time.perf_counter()
    # Reading one number of each result waits for a GPU, too.
    for tensor in tf.nest.flatten(call()):
        float(tf.reshape(tensor, [-1])[0])
    return time.perf_counter() - start


def _peak_bytes(reset: bool = False) -> int:
    if tf.config.list_logical_devices("GPU"):
        if reset:
            tf.config.experimental.reset_memory_stats("GPU:0")
            return tf.config.experimental.get_memory_info("GPU:0")["current"]
        return tf.config.experimental.get_memory_info("GPU:0")["peak"]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak
