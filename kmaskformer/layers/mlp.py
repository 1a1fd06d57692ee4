"""Multi-layer perceptron."""

from __future__ import annotations

import itertools
from typing import Any

import keras

from kmaskformer.layers.dense import Dense, linear


@keras.saving.register_keras_serializable(package="kmaskformer")
class MLP(keras.layers.Layer):
    """Linear layers with ReLU between them and none after the last.

    Args:
        hidden_dim: Number of channels of the inner layers.
        output_dim: Number of channels of the output.
        num_layers: Number of linear layers, at least 1.

    Raises:
        ValueError: If `num_layers` is not positive.
    """

    def __init__(self, hidden_dim: int, output_dim: int, num_layers: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if num_layers < 1:
            raise ValueError(f"`num_layers` must be at least 1. Received: num_layers={num_layers}")
        self.hidden_dim = hidden_dim
        self.output_dim = output_dim
        self.num_layers = num_layers
        self.linears: list[Dense] = []

    def build(self, input_shape: tuple) -> None:
        dims = [input_shape[-1], *[self.hidden_dim] * (self.num_layers - 1), self.output_dim]
        for index, (fan_in, units) in enumerate(itertools.pairwise(dims)):
            activation = "relu" if index < self.num_layers - 1 else None
            layer = linear(units, fan_in, f"linear_{index}", self.dtype_policy, activation=activation)
            layer.build((None, fan_in))
            self.linears.append(layer)
        self.built = True

    def call(self, x: Any) -> Any:
        """`(..., channels)` to `(..., output_dim)`."""
        for layer in self.linears:
            x = layer(x)
        return x

    def compute_output_shape(self, input_shape: tuple) -> tuple:
        return (*input_shape[:-1], self.output_dim)

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "hidden_dim": self.hidden_dim,
            "output_dim": self.output_dim,
            "num_layers": self.num_layers,
        }
