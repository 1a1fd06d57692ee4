"""Multi-head attention whose queries, keys and values come from different tensors."""

from __future__ import annotations

import math
from typing import Any

import keras
from keras import ops

from kmaskformer.layers.dense import Dense
from kmaskformer.layers.initializers import packed_projection


@keras.saving.register_keras_serializable(package="kmaskformer")
class MultiHeadAttention(keras.layers.Layer):
    """Scaled dot-product attention with several heads.

    Keras' own layer has the same mathematics, but adds position embeddings to keys and values alike at the call site,
    keeps its kernels by head, and initialises them otherwise; here the three projections are plain square matrices,
    as checkpoints store them.

    Args:
        dim: Number of channels of queries, keys, values and output.
        num_heads: Number of heads; must divide `dim`.
        dropout: Probability of dropping an attention weight during training.

    Raises:
        ValueError: If `num_heads` does not divide `dim`.
    """

    def __init__(self, dim: int, num_heads: int, dropout: float = 0.0, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if num_heads <= 0 or dim % num_heads:
            raise ValueError(f"`num_heads` must divide `dim`. Received: dim={dim}, num_heads={num_heads}")
        self.dim = dim
        self.num_heads = num_heads
        self.dropout_rate = dropout
        self.query_projection = self._projection("query_projection")
        self.key_projection = self._projection("key_projection")
        self.value_projection = self._projection("value_projection")
        self.output_projection = Dense(dim, dtype=self.dtype_policy, name="output_projection")
        self.dropout = keras.layers.Dropout(dropout, dtype=self.dtype_policy, name="dropout")

    def _projection(self, name: str) -> Dense:
        return Dense(self.dim, kernel_initializer=packed_projection(self.dim), dtype=self.dtype_policy, name=name)

    def build(self, query_shape: tuple, key_shape: tuple | None = None, value_shape: tuple | None = None) -> None:
        shape = (None, None, self.dim)
        for projection in (self.query_projection, self.key_projection, self.value_projection, self.output_projection):
            projection.build(shape)
        self.built = True

    def call(self, query: Any, key: Any, value: Any, training: bool | None = None) -> Any:
        """Attend from each query to all keys.

        Args:
            query: `(batch, queries, dim)`.
            key: `(batch, keys, dim)`.
            value: `(batch, keys, dim)`.
            training: Whether attention weights are dropped.

        Returns:
            `(batch, queries, dim)`.
        """
        weights = ops.cast(self.attention_weights(query, key), self.compute_dtype)
        value = self._split_heads(self.value_projection(value))
        mixed = ops.matmul(self.dropout(weights, training=training), value)
        return self.output_projection(self._merge_heads(mixed))

    def attention_weights(self, query: Any, key: Any) -> Any:
        """The share of each key in each query's result, before dropout: `(batch, heads, queries, keys)` float32."""
        query = self._split_heads(self.query_projection(query))
        key = self._split_heads(self.key_projection(key))
        query = query * ops.cast(1.0 / math.sqrt(self.dim // self.num_heads), query.dtype)
        scores = ops.matmul(query, ops.transpose(key, (0, 1, 3, 2)))
        return ops.softmax(ops.cast(scores, "float32"), axis=-1)

    def _split_heads(self, x: Any) -> Any:
        batch, length, _ = ops.shape(x)
        x = ops.reshape(x, (batch, length, self.num_heads, self.dim // self.num_heads))
        return ops.transpose(x, (0, 2, 1, 3))

    def _merge_heads(self, x: Any) -> Any:
        batch, _, length, _ = ops.shape(x)
        return ops.reshape(ops.transpose(x, (0, 2, 1, 3)), (batch, length, self.dim))

    def compute_output_shape(self, query_shape: tuple, key_shape: tuple, value_shape: tuple) -> tuple:
        return (*query_shape[:-1], self.dim)

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "dim": self.dim,
            "num_heads": self.num_heads,
            "dropout": self.dropout_rate,
        }
