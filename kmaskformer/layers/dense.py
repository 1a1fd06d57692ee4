"""Dense layer of the last axis, computed on the rows of a matrix."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
from keras import ops

from kmaskformer.layers.initializers import linear_bias, linear_kernel
from kmaskformer.layers.normalization import LayerNormalization
from kmaskformer.ops.lean import add_bias, lean_dense, lean_functions_help


@keras.saving.register_keras_serializable(package="kmaskformer")
class Dense(keras.layers.Dense):
    """Keras' dense layer, which makes a matrix of its inputs before anything else.

    Keras multiplies inputs of more than two axes by `tensordot`, whose reshapes stand between product, bias and
    activation, so that TensorFlow computes the three one after the other instead of at once.
    """

    def call(self, inputs: Any, training: bool | None = None) -> Any:
        """`(..., channels)` to `(..., units)`."""
        if len(inputs.shape) == 2:
            return self._of_rows(inputs, training)
        rows = self._of_rows(ops.reshape(inputs, (-1, inputs.shape[-1])), training)
        return ops.reshape(rows, (*ops.shape(inputs)[:-1], self.units))

    def _of_rows(self, rows: Any, training: bool | None) -> Any:
        if self.bias is None or self.compute_dtype == "float32":
            return super().call(rows, training=training)
        return self.activation(add_bias(ops.matmul(rows, self.kernel), self.bias, training))

    def after(self, prepare: Callable[..., Any], x: Any, *parameters: Any) -> Any:
        """The layer's output for `prepare(x, *parameters)` in training, of which `x` alone is kept."""
        kernel, bias = (
            None if weight is None else ops.copy(ops.cast(weight, self.compute_dtype))
            for weight in (self.kernel, self.bias)
        )
        return lean_dense(prepare, x, parameters, kernel, bias)


def dense_after_norm(
    dense: Dense, norm: LayerNormalization, x: Any, arrange: Callable[[Any], Any], training: bool | None
) -> Any:
    """`dense(arrange(norm(x)))`; in training, nothing between `x` and the product is kept for the backward pass.

    Args:
        dense: The layer at the end.
        norm: The layer at the beginning.
        x: `(..., channels)`.
        arrange: Moves what is normalised, and computes nothing.
        training: Whether gradients will be asked for.
    """
    if not lean_functions_help(training):
        return dense(arrange(norm(x)))
    return dense.after(lambda x, *parameters: arrange(norm.normalize(x, *parameters)), x, *norm.parameters())


def linear(
    units: int,
    fan_in: int,
    name: str,
    dtype: Any,
    use_bias: bool = True,
    activation: str | Callable[[Any], Any] | None = None,
) -> Dense:
    """Dense layer with PyTorch's default initialisation."""
    return Dense(
        units,
        activation=activation,
        use_bias=use_bias,
        kernel_initializer=linear_kernel(),
        bias_initializer=linear_bias(fan_in),
        name=name,
        dtype=dtype,
    )
