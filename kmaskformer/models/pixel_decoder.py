"""Pixel decoders: from a backbone's pyramid to per-pixel embeddings at stride 4."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

from kmaskformer.layers.convolution import Convolution
from kmaskformer.layers.initializers import fan_in_uniform
from kmaskformer.layers.position_embedding import SinePositionEmbedding
from kmaskformer.layers.transformer import TransformerEncoder
from kmaskformer.ops.crop import crop_bottom_right


@keras.saving.register_keras_serializable(package="kmaskformer")
class FPNPixelDecoder(keras.layers.Layer):
    """Feature pyramid network with one output, at the resolution of `res2`.

    From the coarsest level up: `layer_4` convolves `res5`; each finer level adds its own 1x1 projection to the
    upsampled result (nearest neighbour) and convolves the sum; a last convolution gives the pixel embedding.

    Args:
        conv_dim: Number of channels of the pyramid.
        mask_dim: Number of channels of the pixel embedding.
        norm: `"group"` (32 groups) or `"none"`, in which case the convolutions have a bias.

    Raises:
        ValueError: If `norm` is neither.

    References:
        - Cheng et al., arXiv 2107.06278, section 3.4 (pixel decoder).
        - Lin et al., Feature Pyramid Networks for Object Detection, arXiv 1612.03144.
    """

    def __init__(self, conv_dim: int = 256, mask_dim: int = 256, norm: str = "group", **kwargs: Any) -> None:
        kwargs.setdefault("name", "pixel_decoder")
        super().__init__(**kwargs)
        if norm not in ("group", "none"):
            raise ValueError(f'`norm` must be "group" or "none". Received: norm={norm!r}')
        self.conv_dim = conv_dim
        self.mask_dim = mask_dim
        self.norm = norm
        self.adapters: dict[int, Convolution] = {}
        self.convs: dict[int, Convolution] = {}
        for index in (4, 3, 2, 1):
            self.convs[index] = self._conv(3, "relu", f"layer_{index}")
            if index < 4:
                self.adapters[index] = self._conv(1, None, f"adapter_{index}")
        self.mask_features = Convolution(
            mask_dim, 3, kernel_initializer=fan_in_uniform(), dtype=self.dtype_policy, name="mask_features"
        )

    def _conv(self, kernel_size: int, activation: str | None, name: str) -> Convolution:
        return Convolution(
            self.conv_dim,
            kernel_size,
            norm=None if self.norm == "none" else self.norm,
            activation=activation,
            kernel_initializer=fan_in_uniform(),
            dtype=self.dtype_policy,
            name=name,
        )

    def build(self, input_shape: dict[str, tuple]) -> None:
        self._build_top(input_shape)
        for index, level in ((3, "res4"), (2, "res3"), (1, "res2")):
            self.adapters[index].build(input_shape[level])
            self.convs[index].build((None, None, None, self.conv_dim))
        self.mask_features.build((None, None, None, self.conv_dim))
        self.built = True

    def _build_top(self, input_shape: dict[str, tuple]) -> None:
        self.convs[4].build(input_shape["res5"])

    def call(self, features: dict[str, Any], training: bool | None = None) -> dict[str, Any]:
        """Decode a pyramid.

        Args:
            features: `{"res2", "res3", "res4", "res5"}`, each `(batch, height/stride, width/stride, channels)`.
            training: Whether dropout acts (there is none in this class).

        Returns:
            `{"pixel_embedding": (batch, height/4, width/4, mask_dim)}`, and whatever else a subclass offers to the
            transformer decoder.
        """
        return {"pixel_embedding": self._merge(self.convs[4](features["res5"]), features)}

    def _merge(self, top: Any, features: dict[str, Any]) -> Any:
        x = top
        for index, level in ((3, "res4"), (2, "res3"), (1, "res2")):
            lateral = self.adapters[index](features[level])
            x = self.convs[index](lateral + upsample_like(x, lateral))
        return self.mask_features(x)

    def compute_output_shape(self, input_shape: dict[str, tuple], **kwargs: Any) -> dict[str, tuple]:
        return {"pixel_embedding": (*input_shape["res2"][:-1], self.mask_dim)}

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "conv_dim": self.conv_dim, "mask_dim": self.mask_dim, "norm": self.norm}


@keras.saving.register_keras_serializable(package="kmaskformer")
class TransformerFPNPixelDecoder(FPNPixelDecoder):
    """FPN whose coarsest level first passes through a transformer encoder.

    Args:
        conv_dim: Number of channels of the pyramid and of the encoder.
        mask_dim: Number of channels of the pixel embedding.
        norm: `"group"` or `"none"`.
        encoder_layers: Number of encoder layers.
        num_heads: Number of attention heads.
        feedforward_dim: Number of channels inside the feed-forward networks.
        dropout: Dropout probability of the encoder.
        pre_norm: Whether the encoder is pre-norm.

    References:
        - Cheng et al., arXiv 2107.06278, appendix (panoptic models with six encoder layers).
    """

    def __init__(
        self,
        conv_dim: int = 256,
        mask_dim: int = 256,
        norm: str = "group",
        encoder_layers: int = 6,
        num_heads: int = 8,
        feedforward_dim: int = 2048,
        dropout: float = 0.1,
        pre_norm: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(conv_dim, mask_dim, norm, **kwargs)
        self.encoder_options = {
            "num_heads": num_heads,
            "feedforward_dim": feedforward_dim,
            "dropout": dropout,
            "pre_norm": pre_norm,
        }
        self.encoder_layers = encoder_layers
        self.input_projection = Convolution(
            conv_dim, 1, kernel_initializer=fan_in_uniform(), dtype=self.dtype_policy, name="input_projection"
        )
        self.position_embedding = SinePositionEmbedding(conv_dim, name="position_embedding")
        self.encoder = TransformerEncoder(
            conv_dim, encoder_layers, **self.encoder_options, dtype=self.dtype_policy, name="encoder"
        )

    def _build_top(self, input_shape: dict[str, tuple]) -> None:
        self.input_projection.build(input_shape["res5"])
        self.encoder.build((None, None, self.conv_dim))
        self.convs[4].build((None, None, None, self.conv_dim))

    def call(self, features: dict[str, Any], training: bool | None = None) -> dict[str, Any]:
        """As `FPNPixelDecoder`, with `"transformer_encoder"` `(batch, height/32, width/32, conv_dim)` besides."""
        x = self.input_projection(features["res5"])
        shape = ops.shape(x)
        position = ops.cast(self.position_embedding(x), x.dtype)
        encoded = self.encoder(ops.reshape(x, (shape[0], -1, self.conv_dim)), position, training=training)
        encoded = ops.reshape(encoded, shape)
        return {
            "pixel_embedding": self._merge(self.convs[4](encoded), features),
            "transformer_encoder": encoded,
        }

    def compute_output_shape(self, input_shape: dict[str, tuple], **kwargs: Any) -> dict[str, tuple]:
        shapes = super().compute_output_shape(input_shape)
        return {**shapes, "transformer_encoder": (*input_shape["res5"][:-1], self.conv_dim)}

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), **self.encoder_options, "encoder_layers": self.encoder_layers}


def upsample_like(x: Any, reference: Any) -> Any:
    """Nearest-neighbour upsampling of `x` to the height and width of `reference`.

    A level of the pyramid has half the size of the next finer one, rounded up. There, PyTorch's nearest neighbour
    (`floor(i * in / out)`) is `i // 2`: repeat every row and column once, then crop. Written as a broadcast, its
    gradient is a plain sum.

    Args:
        x: `(batch, h, w, channels)`.
        reference: `(batch, 2h or 2h - 1, 2w or 2w - 1, any)`.
    """
    batch, height, width, channels = ops.shape(x)
    _, out_height, out_width, _ = ops.shape(reference)
    x = ops.reshape(x, (batch, height, 1, width, 1, channels))
    x = ops.broadcast_to(x, (batch, height, 2, width, 2, channels))
    return crop_bottom_right(ops.reshape(x, (batch, 2 * height, 2 * width, channels)), out_height, out_width)
