"""Functions of which training keeps the input alone for the backward pass, as PyTorch's do.

TensorFlow would keep what each multiplication in them needs, two to four tensors of the input's size. Their gradients
compute anew from the input, and `_later` sees to it: TensorFlow would find that it has computed the same before.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import keras
from keras import ops


def lean_functions_help(training: bool | None) -> bool:
    """Whether there will be a backward pass, for which the backend keeps more than it must without them."""
    return bool(training) and keras.backend.backend() == "tensorflow"


def gelu(x: Any) -> Any:
    """Exact GELU. Keras' own emits `Erfc`, which ONNX runtimes reject."""
    return 0.5 * x * (1.0 + ops.erf(x * (1.0 / math.sqrt(2.0))))


@ops.custom_gradient
def gelu_with_gradient(x: Any) -> tuple[Any, Any]:
    """`gelu`, whose gradient shares the error function with it; for training, where both are computed at once."""
    scaled = x * (1.0 / math.sqrt(2.0))
    probability = 0.5 + 0.5 * ops.erf(scaled)

    def gradient(upstream: Any) -> Any:
        slope = scaled * ops.exp(-ops.square(scaled)) * (1.0 / math.sqrt(math.pi))
        return upstream * (probability + slope)

    return x * probability, gradient


def norm(x: Any, scale: Any, offset: Any, epsilon: float, mean: Callable[[Any], Any]) -> Any:
    """Normalisation in float32: mean 0 and variance 1, then scale and offset.

    Args:
        x: Any shape.
        scale: float32, of the shape of the last axes of `x`.
        offset: Likewise.
        epsilon: Added to the variance.
        mean: Average over what is normalised together, axes kept.

    Returns:
        Shape and dtype of `x`.
    """
    _, centered, factor = moments(x, epsilon, mean)
    return ops.cast(centered * factor * scale + offset, x.dtype)


def lean_norm(x: Any, scale: Any, offset: Any, epsilon: float, mean: Callable[[Any], Any]) -> Any:
    """`norm` for training."""

    @ops.custom_gradient
    def forward(x: Any, scale: Any, offset: Any) -> tuple[Any, Any]:
        middle, centered, factor = moments(x, epsilon, mean)

        def gradient(upstream: Any) -> tuple[Any, Any, Any]:
            normalized = (ops.cast(_later(x, upstream), "float32") - middle) * factor
            upstream = ops.cast(upstream, "float32")
            inner = upstream * scale
            change = factor * (inner - mean(inner) - normalized * mean(inner * normalized))
            sums = [_sum_over_rows(values, scale.shape) for values in (upstream * normalized, upstream)]
            return ops.cast(change, x.dtype), *sums

        return ops.cast(centered * factor * scale + offset, x.dtype), gradient

    return forward(x, scale, offset)


def moments(x: Any, epsilon: float, mean: Callable[[Any], Any]) -> tuple[Any, Any, Any]:
    """The mean of `x`, `x` without it, and what brings that to variance 1; float32."""
    x = ops.cast(x, "float32")
    middle = mean(x)
    centered = x - middle
    return middle, centered, ops.rsqrt(mean(ops.square(centered)) + epsilon)


def _later(x: Any, upstream: Any) -> Any:
    """`x`, for computations that shall not begin before the backward pass has come to `upstream`."""
    import tensorflow as tf  # the one backend that needs lean functions

    with tf.control_dependencies([upstream]):
        return tf.identity(x)


def _sum_over_rows(x: Any, shape: Sequence[int]) -> Any:
    """Sum of `(..., *shape)` over all but the last axes.

    As a product with ones it took a third of the time of `Sum`. `BiasAddGrad` adds up bfloat16 in bfloat16, and loses
    all digits over many rows.
    """
    import tensorflow as tf

    rows = tf.reshape(x, (-1, math.prod(shape)))
    return tf.reshape(tf.linalg.matvec(rows, tf.ones(tf.shape(rows)[0], rows.dtype), transpose_a=True), shape)


def add_bias(x: Any, bias: Any, training: bool | None) -> Any:
    """`x + bias`, whose gradient for the bias is right in half precision too.

    On a CPU TensorFlow adds it up in the type of `x`: in bfloat16, over the pixels of two 128x128 maps, it was off by
    nine tenths.

    Args:
        x: `(..., channels)`.
        bias: `(channels,)`, a tensor or variable.
        training: Whether gradients will be asked for.
    """
    if not lean_functions_help(training) or keras.backend.standardize_dtype(x.dtype) == "float32":
        return ops.add(x, bias)

    @ops.custom_gradient
    def add(x: Any, bias: Any) -> tuple[Any, Any]:
        return ops.add(x, bias), lambda upstream: (upstream, _sum_over_rows(upstream, bias.shape))

    return add(x, ops.copy(bias))


def recomputed(function: Callable[..., Any], *inputs: Any) -> Any:
    """`function(*inputs)` for training: the inputs alone are kept, and the backward pass computes the rest again.

    Args:
        function: Takes tensors to one tensor, and reads no variables.
        inputs: Floating-point tensors, to which gradients flow.
    """
    import tensorflow as tf

    @ops.custom_gradient
    def outputs_of(*inputs: Any) -> tuple[Any, Any]:
        def gradient(upstream: Any) -> list[Any]:
            again = [_later(x, upstream) for x in inputs]
            with tf.GradientTape() as tape:
                tape.watch(again)
                outputs = function(*again)
            return tape.gradient(outputs, again, upstream)

        return function(*inputs), gradient

    return outputs_of(*inputs)


def lean_dense(prepare: Callable[..., Any], x: Any, parameters: Sequence[Any], kernel: Any, bias: Any) -> Any:
    """`prepare(x, *parameters) @ kernel + bias` for training: the backward pass prepares `x` again.

    Args:
        prepare: A cheap function of tensors that reads no variables; gives `(..., channels)`.
        x: What it prepares, and all that is kept.
        parameters: Further tensors that it takes.
        kernel: `(channels, units)`.
        bias: `(units,)`, or None.

    Returns:
        `(..., units)`.
    """
    import tensorflow as tf

    @ops.custom_gradient
    def dense(x: Any, kernel: Any, bias: Any, *parameters: Any) -> tuple[Any, Any]:
        prepared = prepare(x, *parameters)
        rows = ops.reshape(prepared, (-1, kernel.shape[0]))
        outputs = ops.reshape(ops.matmul(rows, kernel) + bias, (*ops.shape(prepared)[:-1], kernel.shape[1]))

        def gradient(upstream: Any) -> tuple[Any, ...]:
            again = _later(x, upstream)
            with tf.GradientTape() as tape:
                tape.watch([again, *parameters])
                prepared = prepare(again, *parameters)
            upstream = ops.reshape(upstream, (-1, kernel.shape[1]))
            change = ops.reshape(tf.matmul(upstream, kernel, transpose_b=True), ops.shape(prepared))
            changes = tape.gradient(prepared, [again, *parameters], change)
            rows = ops.reshape(prepared, (-1, kernel.shape[0]))
            kernel_change = tf.matmul(rows, upstream, transpose_a=True)
            return changes[0], kernel_change, _sum_over_rows(upstream, bias.shape), *changes[1:]

        return outputs, gradient

    if bias is None:
        bias = ops.zeros(kernel.shape[1], kernel.dtype)
    return dense(x, kernel, bias, *parameters)
