"""DETR's transformer: encoder and decoder layers, post-norm and pre-norm, and the stacks of them.

References:
    - Carion et al., End-to-End Object Detection with Transformers, arXiv 2005.12872, figure 10.
"""

from __future__ import annotations

from typing import Any

import keras

from kmaskformer.layers.attention import MultiHeadAttention
from kmaskformer.layers.dense import Dense
from kmaskformer.layers.initializers import linear_bias
from kmaskformer.layers.normalization import make_norm


class _TransformerLayer(keras.layers.Layer):
    """What encoder and decoder layers share: arguments, residual branches and the feed-forward network."""

    def __init__(
        self,
        dim: int,
        num_heads: int = 8,
        feedforward_dim: int = 2048,
        dropout: float = 0.1,
        pre_norm: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.dim = dim
        self.num_heads = num_heads
        self.feedforward_dim = feedforward_dim
        self.dropout_rate = dropout
        self.pre_norm = pre_norm
        self.linear1 = self._linear(feedforward_dim, dim, "linear1", activation="relu")
        self.linear2 = self._linear(dim, feedforward_dim, "linear2")
        self.activation_dropout = keras.layers.Dropout(dropout, dtype=self.dtype_policy, name="activation_dropout")

    def _linear(self, units: int, fan_in: int, name: str, activation: str | None = None) -> Dense:
        # Kernels are Glorot uniform (Keras' default); biases keep PyTorch's, as the reference resets kernels only.
        bias = linear_bias(fan_in)
        return Dense(units, activation=activation, bias_initializer=bias, dtype=self.dtype_policy, name=name)

    def _attention(self, name: str) -> MultiHeadAttention:
        return MultiHeadAttention(
            self.dim, self.num_heads, dropout=self.dropout_rate, dtype=self.dtype_policy, name=name
        )

    def _norm(self, name: str) -> keras.layers.Layer:
        return make_norm("layer", name, dtype=self.dtype_policy)

    def _residual_dropout(self, name: str) -> keras.layers.Dropout:
        return keras.layers.Dropout(self.dropout_rate, dtype=self.dtype_policy, name=name)

    def _build_feedforward(self) -> None:
        self.linear1.build((None, None, self.dim))
        self.linear2.build((None, None, self.feedforward_dim))

    def _feedforward(self, x: Any, training: bool | None) -> Any:
        return self.linear2(self.activation_dropout(self.linear1(x), training=training))

    def _residual(self, x: Any, branch: Any, norm: Any, dropout: Any, training: bool | None) -> Any:
        """x + branch(norm(x)) when pre-norm, norm(x + branch(x)) when post-norm."""
        if self.pre_norm:
            return x + dropout(branch(norm(x)), training=training)
        return norm(x + dropout(branch(x), training=training))

    def compute_output_shape(self, input_shape: tuple, *args: Any, **kwargs: Any) -> tuple:
        return input_shape

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "dim": self.dim,
            "num_heads": self.num_heads,
            "feedforward_dim": self.feedforward_dim,
            "dropout": self.dropout_rate,
            "pre_norm": self.pre_norm,
        }


@keras.saving.register_keras_serializable(package="kmaskformer")
class TransformerEncoderLayer(_TransformerLayer):
    """Self-attention and feed-forward network over the pixels of a feature map.

    Args:
        dim: Number of channels.
        num_heads: Number of attention heads.
        feedforward_dim: Number of channels inside the feed-forward network.
        dropout: Probability used on attention weights, activations and residual branches.
        pre_norm: Whether each branch is normalised before instead of after its addition.
    """

    def __init__(self, dim: int, **kwargs: Any) -> None:
        super().__init__(dim, **kwargs)
        self.self_attention = self._attention("self_attention")
        self.norm1 = self._norm("norm1")
        self.norm2 = self._norm("norm2")
        self.dropout1 = self._residual_dropout("dropout1")
        self.dropout2 = self._residual_dropout("dropout2")

    def build(self, input_shape: tuple, *args: Any) -> None:
        shape = (None, None, self.dim)
        self.self_attention.build(shape, shape, shape)
        self.norm1.build(shape)
        self.norm2.build(shape)
        self._build_feedforward()
        self.built = True

    def call(self, x: Any, position: Any, training: bool | None = None) -> Any:
        """`x` `(batch, pixels, dim)` and its position embedding `(1 or batch, pixels, dim)` to the shape of `x`."""

        def attend(y: Any) -> Any:
            located = y + position
            return self.self_attention(located, located, y, training=training)

        x = self._residual(x, attend, self.norm1, self.dropout1, training)
        return self._residual(x, lambda y: self._feedforward(y, training), self.norm2, self.dropout2, training)


@keras.saving.register_keras_serializable(package="kmaskformer")
class TransformerDecoderLayer(_TransformerLayer):
    """Self-attention among the queries, attention to the image, feed-forward network.

    Args:
        dim: Number of channels.
        num_heads: Number of attention heads.
        feedforward_dim: Number of channels inside the feed-forward network.
        dropout: Probability used on attention weights, activations and residual branches.
        pre_norm: Whether each branch is normalised before instead of after its addition.
    """

    def __init__(self, dim: int, **kwargs: Any) -> None:
        super().__init__(dim, **kwargs)
        self.self_attention = self._attention("self_attention")
        self.cross_attention = self._attention("cross_attention")
        for index in (1, 2, 3):
            setattr(self, f"norm{index}", self._norm(f"norm{index}"))
            setattr(self, f"dropout{index}", self._residual_dropout(f"dropout{index}"))

    def build(self, input_shape: tuple, *args: Any) -> None:
        shape = (None, None, self.dim)
        self.self_attention.build(shape, shape, shape)
        self.cross_attention.build(shape, shape, shape)
        for norm in (self.norm1, self.norm2, self.norm3):
            norm.build(shape)
        self._build_feedforward()
        self.built = True

    def call(self, x: Any, memory: Any, memory_position: Any, query_position: Any, training: bool | None = None) -> Any:
        """One decoding step.

        Args:
            x: `(batch, queries, dim)`.
            memory: Image features `(batch, pixels, dim)`.
            memory_position: Position embedding of the pixels, `(1 or batch, pixels, dim)`.
            query_position: Learned embedding of the queries, `(1 or batch, queries, dim)`.
            training: Whether dropout acts.

        Returns:
            `(batch, queries, dim)`.
        """

        def attend_queries(y: Any) -> Any:
            located = y + query_position
            return self.self_attention(located, located, y, training=training)

        def attend_image(y: Any) -> Any:
            return self.cross_attention(y + query_position, memory + memory_position, memory, training=training)

        x = self._residual(x, attend_queries, self.norm1, self.dropout1, training)
        x = self._residual(x, attend_image, self.norm2, self.dropout2, training)
        return self._residual(x, lambda y: self._feedforward(y, training), self.norm3, self.dropout3, training)


@keras.saving.register_keras_serializable(package="kmaskformer")
class TransformerEncoder(keras.layers.Layer):
    """A stack of encoder layers.

    With `pre_norm` a final normalisation closes the stack; it exists and acts even with `num_layers=0`, as in the
    reference.

    Args:
        dim: Number of channels.
        num_layers: Number of layers; 0 passes features through.
        num_heads: Number of attention heads.
        feedforward_dim: Number of channels inside the feed-forward networks.
        dropout: Dropout probability.
        pre_norm: Whether the layers are pre-norm.
    """

    def __init__(
        self,
        dim: int,
        num_layers: int,
        num_heads: int = 8,
        feedforward_dim: int = 2048,
        dropout: float = 0.1,
        pre_norm: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.options = {
            "dim": dim,
            "num_heads": num_heads,
            "feedforward_dim": feedforward_dim,
            "dropout": dropout,
            "pre_norm": pre_norm,
        }
        self.layers = [
            TransformerEncoderLayer(**self.options, dtype=self.dtype_policy, name=f"layer_{index}")
            for index in range(num_layers)
        ]
        self.norm = None
        if pre_norm:
            self.norm = make_norm("layer", "norm", dtype=self.dtype_policy)

    def build(self, input_shape: tuple, *args: Any) -> None:
        shape = (None, None, self.options["dim"])
        for layer in self.layers:
            layer.build(shape)
        if self.norm is not None:
            self.norm.build(shape)
        self.built = True

    def call(self, x: Any, position: Any, training: bool | None = None) -> Any:
        """`x` `(batch, pixels, dim)`, `position` `(1 or batch, pixels, dim)` to `(batch, pixels, dim)`."""
        for layer in self.layers:
            x = layer(x, position, training=training)
        return x if self.norm is None else self.norm(x)

    def compute_output_shape(self, input_shape: tuple, *args: Any, **kwargs: Any) -> tuple:
        return input_shape

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), **self.options, "num_layers": len(self.layers)}


@keras.saving.register_keras_serializable(package="kmaskformer")
class TransformerDecoder(keras.layers.Layer):
    """A stack of decoder layers; every layer's output goes through one shared normalisation.

    Args:
        dim: Number of channels.
        num_layers: Number of layers, at least 1.
        num_heads: Number of attention heads.
        feedforward_dim: Number of channels inside the feed-forward networks.
        dropout: Dropout probability.
        pre_norm: Whether the layers are pre-norm.

    Raises:
        ValueError: If `num_layers` is not positive.
    """

    def __init__(
        self,
        dim: int,
        num_layers: int,
        num_heads: int = 8,
        feedforward_dim: int = 2048,
        dropout: float = 0.1,
        pre_norm: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if num_layers < 1:
            raise ValueError(f"`num_layers` must be at least 1. Received: num_layers={num_layers}")
        self.options = {
            "dim": dim,
            "num_heads": num_heads,
            "feedforward_dim": feedforward_dim,
            "dropout": dropout,
            "pre_norm": pre_norm,
        }
        self.layers = [
            TransformerDecoderLayer(**self.options, dtype=self.dtype_policy, name=f"layer_{index}")
            for index in range(num_layers)
        ]
        self.norm = make_norm("layer", "norm", dtype=self.dtype_policy)

    def build(self, input_shape: tuple, *args: Any) -> None:
        shape = (None, None, self.options["dim"])
        for layer in self.layers:
            layer.build(shape)
        self.norm.build(shape)
        self.built = True

    def call(
        self, x: Any, memory: Any, memory_position: Any, query_position: Any, training: bool | None = None
    ) -> list[Any]:
        """Output of every layer, first to last, each `(batch, queries, dim)`; arguments as in the layer."""
        outputs = []
        for layer in self.layers:
            x = layer(x, memory, memory_position, query_position, training=training)
            outputs.append(self.norm(x))
        return outputs

    def compute_output_shape(self, input_shape: tuple, *args: Any, **kwargs: Any) -> list[tuple]:
        return [input_shape] * len(self.layers)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), **self.options, "num_layers": len(self.layers)}
