"""The transformer module: from image features to one embedding per query."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

from kmaskformer.layers.convolution import Convolution
from kmaskformer.layers.initializers import fan_in_uniform
from kmaskformer.layers.position_embedding import SinePositionEmbedding
from kmaskformer.layers.transformer import TransformerDecoder, TransformerEncoder


@keras.saving.register_keras_serializable(package="kmaskformer")
class QueryDecoder(keras.layers.Layer):
    """DETR's transformer decoder over one feature map, with learned queries.

    The queries start as zeros; their learned embedding is added wherever they act as a query or a key.

    Args:
        num_queries: Number of queries.
        hidden_dim: Number of channels.
        num_heads: Number of attention heads.
        feedforward_dim: Number of channels inside the feed-forward networks.
        dropout: Dropout probability.
        encoder_layers: Number of encoder layers between the feature map and the decoder.
        decoder_layers: Number of decoder layers.
        pre_norm: Whether layers are pre-norm.
        in_feature: Which feature feeds it: `res2` to `res5`, or `transformer_encoder` of the pixel decoder.
        enforce_input_projection: Project the feature even if it has `hidden_dim` channels already.

    Raises:
        ValueError: If `num_queries` is not positive or `in_feature` is unknown.

    References:
        - Cheng et al., arXiv 2107.06278, section 3.4 (transformer module).
    """

    IN_FEATURES = ("res2", "res3", "res4", "res5", "transformer_encoder")

    def __init__(
        self,
        num_queries: int = 100,
        hidden_dim: int = 256,
        num_heads: int = 8,
        feedforward_dim: int = 2048,
        dropout: float = 0.1,
        encoder_layers: int = 0,
        decoder_layers: int = 6,
        pre_norm: bool = False,
        in_feature: str = "res5",
        enforce_input_projection: bool = False,
        **kwargs: Any,
    ) -> None:
        kwargs.setdefault("name", "transformer_decoder")
        super().__init__(**kwargs)
        if num_queries < 1:
            raise ValueError(f"`num_queries` must be a positive integer. Received: num_queries={num_queries}")
        if in_feature not in self.IN_FEATURES:
            raise ValueError(f"`in_feature` must be one of {self.IN_FEATURES}. Received: in_feature={in_feature!r}")
        self.num_queries = num_queries
        self.hidden_dim = hidden_dim
        self.encoder_layers = encoder_layers
        self.decoder_layers = decoder_layers
        self.in_feature = in_feature
        self.enforce_input_projection = enforce_input_projection
        self.layer_options = {
            "num_heads": num_heads,
            "feedforward_dim": feedforward_dim,
            "dropout": dropout,
            "pre_norm": pre_norm,
        }
        self.position_embedding = SinePositionEmbedding(hidden_dim, name="position_embedding")
        self.encoder = TransformerEncoder(
            hidden_dim, encoder_layers, **self.layer_options, dtype=self.dtype_policy, name="encoder"
        )
        self.decoder = TransformerDecoder(
            hidden_dim, decoder_layers, **self.layer_options, dtype=self.dtype_policy, name="decoder"
        )
        self.input_projection: Convolution | None = None

    def build(self, input_shape: tuple) -> None:
        if self.enforce_input_projection or input_shape[-1] != self.hidden_dim:
            self.input_projection = Convolution(
                self.hidden_dim,
                1,
                kernel_initializer=fan_in_uniform(),
                dtype=self.dtype_policy,
                name="input_projection",
            )
            self.input_projection.build(input_shape)
        shape = (None, None, self.hidden_dim)
        self.encoder.build(shape)
        self.decoder.build(shape)
        self.query_embedding = self.add_weight(
            name="query_embedding",
            shape=(self.num_queries, self.hidden_dim),
            initializer=keras.initializers.RandomNormal(0.0, 1.0),
        )
        self.built = True

    def call(self, feature: Any, training: bool | None = None) -> list[Any]:
        """Decode one feature map.

        Args:
            feature: `(batch, h, w, channels)`, the map named by `in_feature`.
            training: Whether dropout acts.

        Returns:
            Query embeddings after each decoder layer, first to last, each `(batch, queries, hidden_dim)`.
        """
        x = feature if self.input_projection is None else self.input_projection(feature)
        batch = ops.shape(x)[0]
        position = ops.cast(self.position_embedding(x), x.dtype)
        memory = self.encoder(ops.reshape(x, (batch, -1, self.hidden_dim)), position, training=training)
        query_position = ops.cast(self.query_embedding, x.dtype)[None]
        start = ops.zeros((batch, self.num_queries, self.hidden_dim), dtype=x.dtype)
        return self.decoder(start, memory, position, query_position, training=training)

    def compute_output_shape(self, input_shape: tuple, **kwargs: Any) -> list[tuple]:
        return [(input_shape[0], self.num_queries, self.hidden_dim)] * self.decoder_layers

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            **self.layer_options,
            "num_queries": self.num_queries,
            "hidden_dim": self.hidden_dim,
            "encoder_layers": self.encoder_layers,
            "decoder_layers": self.decoder_layers,
            "in_feature": self.in_feature,
            "enforce_input_projection": self.enforce_input_projection,
        }
