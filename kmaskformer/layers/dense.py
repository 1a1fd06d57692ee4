"""Dense layer of the last axis, computed on the rows of a matrix."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
from keras import ops

from kmaskformer.layers.initializers import linear_bias, linear_kernel


@keras.saving.register_keras_serializable(package="kmaskformer")
class Dense(keras.layers.Dense):
    """Keras' dense layer, which makes a matrix of its inputs before anything else.

    Keras multiplies inputs of more than two axes by `tensordot`, whose reshapes stand between product, bias and
    activation, so that TensorFlow computes the three one after the other instead of at once.
    """

    def call(self, inputs: Any, training: bool | None = None) -> Any:
        """`(..., channels)` to `(..., units)`."""
        if len(inputs.shape) == 2:
            return super().call(inputs, training=training)
        rows = super().call(ops.reshape(inputs, (-1, inputs.shape[-1])), training=training)
        return ops.reshape(rows, (*ops.shape(inputs)[:-1], self.units))


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
