"""Sine position embedding of a feature map."""

from __future__ import annotations

import math
from typing import Any

import keras
import numpy as np
from keras import ops


@keras.saving.register_keras_serializable(package="kmaskformer")
class SinePositionEmbedding(keras.layers.Layer):
    """Fixed two-dimensional sine embedding, normalised over the extent of the map.

    A row's position runs over 1..height and is scaled to 2 pi; sine and cosine alternate along the channels; the
    first half of the channels encodes the row, the second half the column. Always computed in float32.

    Args:
        dim: Number of channels, a multiple of 4.
        temperature: Base of the geometric progression of wavelengths.

    Raises:
        ValueError: If `dim` is not a positive multiple of 4.

    References:
        - Carion et al., End-to-End Object Detection with Transformers, arXiv 2005.12872, appendix A.4.
    """

    def __init__(self, dim: int, temperature: float = 10000.0, **kwargs: Any) -> None:
        super().__init__(**{**kwargs, "dtype": "float32"})
        if dim <= 0 or dim % 4:
            raise ValueError(f"`dim` must be a positive multiple of 4. Received: dim={dim}")
        self.dim = dim
        self.temperature = temperature

    def build(self, input_shape: tuple) -> None:
        self.built = True

    def call(self, features: Any) -> Any:
        """Embedding of a feature map.

        Args:
            features: `(batch, height, width, channels)`; only its shape is read.

        Returns:
            `(1, height * width, dim)` float32, rows first.
        """
        _, height, width, _ = ops.shape(features)
        rows = self._encode(height)
        columns = self._encode(width)
        half = self.dim // 2
        rows = ops.broadcast_to(rows[:, None, :], (height, width, half))
        columns = ops.broadcast_to(columns[None, :, :], (height, width, half))
        return ops.reshape(ops.concatenate([rows, columns], axis=-1), (1, height * width, self.dim))

    def _encode(self, length: Any) -> Any:
        half = self.dim // 2
        wavelengths = self.temperature ** (2 * (np.arange(half) // 2) / half)
        positions = ops.cast(ops.arange(1, length + 1), "float32")
        angles = positions / (ops.cast(length, "float32") + 1e-6) * (2 * math.pi)
        angles = angles[:, None] / ops.convert_to_tensor(wavelengths.astype("float32"))
        pairs = ops.stack([ops.sin(angles[:, 0::2]), ops.cos(angles[:, 1::2])], axis=2)
        return ops.reshape(pairs, (length, half))

    def compute_output_shape(self, input_shape: tuple) -> tuple:
        _, height, width, _ = input_shape
        return (1, None if None in (height, width) else height * width, self.dim)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "dim": self.dim, "temperature": self.temperature}
