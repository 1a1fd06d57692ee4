"""Functions of which training keeps the input alone for the backward pass, as PyTorch's do.

TensorFlow would keep what each multiplication in them needs, two to four tensors of the input's size.
"""

from __future__ import annotations

import math
from typing import Any

import keras
from keras import ops


def lean_functions_help() -> bool:
    """Whether the backend keeps more than it must without them."""
    return keras.backend.backend() == "tensorflow"


def gelu(x: Any) -> Any:
    """Exact GELU. Keras' own emits `Erfc`, which ONNX runtimes reject."""
    return 0.5 * x * (1.0 + ops.erf(x * (1.0 / math.sqrt(2.0))))


@ops.custom_gradient
def lean_gelu(x: Any) -> tuple[Any, Any]:
    """`gelu` for training."""

    def gradient(upstream: Any) -> Any:
        probability = 0.5 * (1.0 + ops.erf(x * (1.0 / math.sqrt(2.0))))
        density = ops.exp(-0.5 * x * x) * (1.0 / math.sqrt(2.0 * math.pi))
        return upstream * (probability + x * density)

    return gelu(x), gradient


def lean_layer_norm(x: Any, scale: Any, offset: Any, epsilon: float) -> Any:
    """Layer normalisation of the last axis for training, in float32.

    Args:
        x: `(..., channels)`.
        scale: `(channels,)` float32.
        offset: `(channels,)` float32.
        epsilon: Added to the variance.

    Returns:
        Shape and dtype of `x`.
    """

    @ops.custom_gradient
    def norm(x: Any, scale: Any, offset: Any) -> tuple[Any, Any]:
        mean = _mean(ops.cast(x, "float32"))
        centered = ops.cast(x, "float32") - mean
        factor = ops.rsqrt(_mean(ops.square(centered)) + epsilon)

        def gradient(upstream: Any) -> tuple[Any, Any, Any]:
            normalized = (ops.cast(x, "float32") - mean) * factor
            upstream = ops.cast(upstream, "float32")
            inner = upstream * scale
            change = factor * (inner - _mean(inner) - normalized * _mean(inner * normalized))
            rows = tuple(range(len(x.shape) - 1))
            return ops.cast(change, x.dtype), ops.sum(upstream * normalized, axis=rows), ops.sum(upstream, axis=rows)

        return ops.cast(centered * factor * scale + offset, x.dtype), gradient

    return norm(x, scale, offset)


def _mean(x: Any) -> Any:
    return ops.mean(x, axis=-1, keepdims=True)
