"""Stochastic depth."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops


@keras.saving.register_keras_serializable(package="kmaskformer")
class DropPath(keras.layers.Layer):
    """Sets whole samples of a residual branch to zero during training and scales the others up to keep the mean.

    Args:
        rate: Probability of dropping a sample, 0 <= rate < 1.
        seed: Seed of the random numbers; None draws one from Keras' global seed.

    Raises:
        ValueError: If `rate` is outside its range.

    References:
        - [Deep Networks with Stochastic Depth](https://arxiv.org/abs/1603.09382)
    """

    def __init__(self, rate: float = 0.0, seed: int | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if not 0 <= rate < 1:
            raise ValueError(f"`rate` must be at least 0 and less than 1. Received: rate={rate}")
        self.rate, self.seed = float(rate), seed
        self.seed_generator = keras.random.SeedGenerator(seed) if rate > 0 else None

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        """The layer has no weights."""

    def call(self, inputs: Any, training: bool | None = None) -> Any:
        """`(batch, ...)` to the same shape."""
        factor = self.factor(inputs, training)
        return inputs if factor is None else inputs * factor

    def factor(self, inputs: Any, training: bool | None) -> Any:
        """What `(batch, ...)` inputs are multiplied by, drawn anew: `(batch, 1, ...)`; None for nothing."""
        if not training or self.seed_generator is None:
            return None
        keep = 1.0 - self.rate
        shape = (ops.shape(inputs)[0], *[1] * (len(inputs.shape) - 1))
        drawn = keras.random.uniform(shape, dtype="float32", seed=self.seed_generator)
        return ops.cast(drawn < keep, inputs.dtype) / ops.cast(keep, inputs.dtype)

    def compute_output_shape(self, input_shape: tuple[int | None, ...]) -> tuple[int | None, ...]:
        return input_shape

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "rate": self.rate, "seed": self.seed}
