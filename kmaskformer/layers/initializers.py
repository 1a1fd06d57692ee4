"""Weight initialisers of the reference, by the name of the scheme each layer uses there.

People train from scratch, so the starting point is part of the model: Keras' defaults (Glorot for kernels, zeros for
biases) are another model.
"""

from __future__ import annotations

import math

import keras


def fan_in_uniform() -> keras.initializers.Initializer:
    """U(-b, b) with b = sqrt(3 / fan_in): the pixel decoder's convolutions and the input projections."""
    return keras.initializers.VarianceScaling(scale=1.0, mode="fan_in", distribution="uniform")


def linear_kernel() -> keras.initializers.Initializer:
    """U(-b, b) with b = 1 / sqrt(fan_in): PyTorch's default of a linear layer's kernel."""
    return keras.initializers.VarianceScaling(scale=1.0 / 3.0, mode="fan_in", distribution="uniform")


def linear_bias(fan_in: int) -> keras.initializers.Initializer:
    """U(-b, b) with b = 1 / sqrt(fan_in): PyTorch's default of a linear layer's bias."""
    bound = 1.0 / math.sqrt(fan_in)
    return keras.initializers.RandomUniform(-bound, bound)


def packed_projection(dim: int) -> keras.initializers.Initializer:
    """Glorot uniform of the packed `(3 * dim, dim)` query-key-value matrix, for one of its three parts."""
    bound = math.sqrt(6.0 / (4 * dim))
    return keras.initializers.RandomUniform(-bound, bound)
