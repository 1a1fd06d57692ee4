"""Swin Transformer for images of any size."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
from keras import ops

from kmaskformer.backbones.features import FEATURES, STRIDES
from kmaskformer.layers.dense import linear
from kmaskformer.layers.initializers import linear_bias, linear_kernel
from kmaskformer.layers.normalization import make_norm
from kmaskformer.layers.swin_block import SwinBlock, pad_to_multiple
from kmaskformer.layers.window_attention import shifted_window_mask
from kmaskformer.ops.bicubic import resize_bicubic

PATCH_SIZE = 4
"""Side of an image patch. No argument: the strides 4, 8, 16, 32 of the feature maps follow from it."""

SWIN_TINY = {"embed_dim": 96, "depths": (2, 2, 6, 2), "num_heads": (3, 6, 12, 24), "window_size": 7}
SWIN_SMALL = {"embed_dim": 96, "depths": (2, 2, 18, 2), "num_heads": (3, 6, 12, 24), "window_size": 7}
SWIN_BASE = {"embed_dim": 128, "depths": (2, 2, 18, 2), "num_heads": (4, 8, 16, 32), "window_size": 12}
SWIN_LARGE = {"embed_dim": 192, "depths": (2, 2, 18, 2), "num_heads": (6, 12, 24, 48), "window_size": 12}


@keras.saving.register_keras_serializable(package="kmaskformer")
class SwinTransformer(keras.layers.Layer):
    """Hierarchical transformer with attention in shifted windows, returning four normalised feature maps.

    Args:
        embed_dim: Channels of the first stage; they double at every stage.
        depths: Blocks of each of the four stages.
        num_heads: Attention heads of each stage.
        window_size: Side of an attention window in pixels of the feature map.
        mlp_ratio: Hidden channels of a block's MLP over its channels.
        qkv_bias: Whether query, key and value projections have a bias.
        drop_rate: Dropout after the patch embedding, in MLPs and after attention.
        attention_drop_rate: Dropout of attention weights.
        drop_path_rate: Stochastic depth of the last block; earlier blocks rise to it linearly from 0.
        patch_norm: Whether the patch embedding ends in a layer norm.
        qk_scale: Factor of the products of queries and keys; None for 1 / sqrt(channels of a head).
        absolute_position_embedding: Whether a learned map of positions is added to the patch embedding. It is resized
            bicubically to the feature map.
        pretrain_image_size: Side of the images that the map of positions is made for, in pixels: the map has
            `pretrain_image_size / 4` rows and columns. Without that map, it has no effect.
        recompute: Whether blocks are computed again in the backward pass instead of keeping what they computed; it
            needs both drop rates to be 0.
        name: Name of the layer.

    Raises:
        ValueError: If `depths` or `num_heads` have not four entries, `pretrain_image_size` is no positive multiple of
            4, or `recompute` is asked for with dropout.

    Example:
        >>> backbone = SwinTransformer(**SWIN_TINY)

    References:
        - [Swin Transformer](https://arxiv.org/abs/2103.14030)
    """

    def __init__(
        self,
        embed_dim: int = 96,
        depths: tuple[int, ...] = (2, 2, 6, 2),
        num_heads: tuple[int, ...] = (3, 6, 12, 24),
        window_size: int = 7,
        mlp_ratio: float = 4.0,
        qkv_bias: bool = True,
        drop_rate: float = 0.0,
        attention_drop_rate: float = 0.0,
        drop_path_rate: float = 0.3,
        patch_norm: bool = True,
        qk_scale: float | None = None,
        absolute_position_embedding: bool = False,
        pretrain_image_size: int = 224,
        recompute: bool = False,
        name: str = "backbone",
        **kwargs: Any,
    ) -> None:
        super().__init__(name=name, **kwargs)
        if recompute and (drop_rate or attention_drop_rate):
            raise ValueError(
                "`recompute` needs drop_rate=0 and attention_drop_rate=0: the second computation would drop others. "
                f"Received: drop_rate={drop_rate}, attention_drop_rate={attention_drop_rate}"
            )
        for argument, value in (("depths", depths), ("num_heads", num_heads)):
            if len(value) != len(FEATURES):
                raise ValueError(f"`{argument}` must have one entry per stage (4). Received: {tuple(value)}")
        if pretrain_image_size < 1 or pretrain_image_size % PATCH_SIZE:
            raise ValueError(
                f"`pretrain_image_size` must be a positive multiple of {PATCH_SIZE}. Received: {pretrain_image_size}"
            )
        self.embed_dim, self.depths, self.num_heads = embed_dim, tuple(depths), tuple(num_heads)
        self.window_size, self.mlp_ratio, self.qkv_bias = window_size, mlp_ratio, qkv_bias
        self.drop_rate, self.attention_drop_rate = drop_rate, attention_drop_rate
        self.drop_path_rate, self.patch_norm, self.qk_scale = drop_path_rate, patch_norm, qk_scale
        self.absolute_position_embedding = absolute_position_embedding
        self.pretrain_image_size, self.recompute = pretrain_image_size, recompute
        self.absolute_pos_embed = None
        self.patch_embed = PatchEmbedding(embed_dim, patch_norm, name="patch_embed", dtype=self.dtype_policy)
        self.drop = keras.layers.Dropout(drop_rate, name="drop", dtype=self.dtype_policy)
        self.stages = self._make_stages()
        self.norms = [make_norm("layer", name=f"norm{index}", dtype=self.dtype_policy) for index in range(4)]

    @property
    def feature_channels(self) -> dict[str, int]:
        """Number of channels of each feature map."""
        return {name: self.embed_dim * 2**index for index, name in enumerate(FEATURES)}

    @property
    def size_divisibility(self) -> int:
        """Multiple of the sides of images that it asks for: 32, so that no patch is padded. Other sizes work too."""
        return max(STRIDES.values())

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        self.patch_embed.build(input_shape)
        if self.absolute_position_embedding:
            self._add_position_map()
        shape = self.patch_embed.compute_output_shape(input_shape)
        for stage, norm in zip(self.stages, self.norms, strict=True):
            stage.build(shape)
            norm.build(shape)
            shape = stage.compute_output_shape(shape)[1]

    def call(self, images: Any, training: bool | None = None) -> dict[str, Any]:
        """Features of images.

        Args:
            images: `(batch, height, width, 3)`, normalised, any height and width.
            training: Whether dropout and stochastic depth act.

        Returns:
            `res2`, `res3`, `res4`, `res5`: `(batch, height/s, width/s, channels)` with s = 4, 8, 16, 32, sides rounded
            up.
        """
        x = self.patch_embed(images)
        if self.absolute_position_embedding:
            x = x + self._positions(x)
        x = self.drop(x)
        features = {}
        for name, stage, norm in zip(FEATURES, self.stages, self.norms, strict=True):
            feature, x = stage(x)
            features[name] = norm(feature)
        return features

    def compute_output_shape(self, input_shape: tuple[int | None, ...]) -> dict[str, tuple[int | None, ...]]:
        shape, shapes = self.patch_embed.compute_output_shape(input_shape), {}
        for name, stage in zip(FEATURES, self.stages, strict=True):
            shapes[name], shape = stage.compute_output_shape(shape)
        return shapes

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "embed_dim": self.embed_dim,
            "depths": list(self.depths),
            "num_heads": list(self.num_heads),
            "window_size": self.window_size,
            "mlp_ratio": self.mlp_ratio,
            "qkv_bias": self.qkv_bias,
            "drop_rate": self.drop_rate,
            "attention_drop_rate": self.attention_drop_rate,
            "drop_path_rate": self.drop_path_rate,
            "patch_norm": self.patch_norm,
            "qk_scale": self.qk_scale,
            "absolute_position_embedding": self.absolute_position_embedding,
            "pretrain_image_size": self.pretrain_image_size,
            "recompute": self.recompute,
        }

    def _add_position_map(self) -> None:
        side = self.pretrain_image_size // PATCH_SIZE
        # Channels before rows and columns: the shape in checkpoints, and the last two axes are those to resize.
        # As in the bias tables, the truncation of the reference is at 100 standard deviations, that is, none.
        self.absolute_pos_embed = self.add_weight(
            name="absolute_pos_embed",
            shape=(1, self.embed_dim, side, side),
            initializer=keras.initializers.RandomNormal(stddev=0.02),
            autocast=False,
        )

    def _positions(self, x: Any) -> Any:
        """The map of positions at the size of `x`, `(1, height, width, embed_dim)`."""
        positions = resize_bicubic(ops.convert_to_tensor(self.absolute_pos_embed), ops.shape(x)[1:3])
        return ops.cast(ops.transpose(positions, (0, 2, 3, 1)), x.dtype)

    def _make_stages(self) -> list[SwinStage]:
        rates = np.linspace(0.0, self.drop_path_rate, sum(self.depths)).tolist()
        starts = np.cumsum([0, *self.depths])
        return [
            SwinStage(
                dim=self.embed_dim * 2**index,
                num_heads=self.num_heads[index],
                window_size=self.window_size,
                drop_path_rates=rates[starts[index] : starts[index + 1]],
                mlp_ratio=self.mlp_ratio,
                qkv_bias=self.qkv_bias,
                drop_rate=self.drop_rate,
                attention_drop_rate=self.attention_drop_rate,
                qk_scale=self.qk_scale,
                recompute=self.recompute,
                has_downsample=index < len(FEATURES) - 1,
                name=f"layers_{index}",
                dtype=self.dtype_policy,
            )
            for index in range(len(FEATURES))
        ]


@keras.saving.register_keras_serializable(package="kmaskformer")
class PatchEmbedding(keras.layers.Layer):
    """Linear map of each 4x4 patch of an image, which is padded with zeros on the right and bottom where needed."""

    def __init__(self, dim: int, use_norm: bool = True, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.dim, self.use_norm = dim, use_norm
        self.norm = make_norm("layer", name="norm", dtype=self.dtype_policy) if use_norm else None
        self.proj = None

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        self.proj = keras.layers.Conv2D(
            self.dim,
            PATCH_SIZE,
            strides=PATCH_SIZE,
            data_format="channels_last",
            kernel_initializer=linear_kernel(),
            bias_initializer=linear_bias(PATCH_SIZE**2 * input_shape[-1]),
            name="proj",
            dtype=self.dtype_policy,
        )
        self.proj.build(input_shape)
        if self.norm is not None:
            self.norm.build(self.compute_output_shape(input_shape))

    def call(self, images: Any) -> Any:
        """`(batch, height, width, 3)` to `(batch, height/4, width/4, dim)`, sides rounded up."""
        x = self.proj(pad_to_multiple(images, PATCH_SIZE))
        return x if self.norm is None else self.norm(x)

    def compute_output_shape(self, input_shape: tuple[int | None, ...]) -> tuple[int | None, ...]:
        return (input_shape[0], *(ceil_div(side, PATCH_SIZE) for side in input_shape[1:3]), self.dim)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "dim": self.dim, "use_norm": self.use_norm}


@keras.saving.register_keras_serializable(package="kmaskformer")
class SwinStage(keras.layers.Layer):
    """Blocks of one resolution, every second one with shifted windows, then the step to the next resolution.

    Args:
        dim: Number of channels.
        drop_path_rates: Stochastic depth of each block; as many blocks as rates.
        has_downsample: Whether patches are merged at the end (not in the last stage).
        num_heads: See `SwinTransformer`, also for the other arguments.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        window_size: int,
        drop_path_rates: list[float],
        mlp_ratio: float = 4.0,
        qkv_bias: bool = True,
        drop_rate: float = 0.0,
        attention_drop_rate: float = 0.0,
        has_downsample: bool = True,
        qk_scale: float | None = None,
        recompute: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.window_size, self.drop_path_rates = window_size, list(drop_path_rates)
        self.block_arguments = {
            "dim": dim,
            "num_heads": num_heads,
            "window_size": window_size,
            "mlp_ratio": mlp_ratio,
            "qkv_bias": qkv_bias,
            "drop_rate": drop_rate,
            "attention_drop_rate": attention_drop_rate,
            "qk_scale": qk_scale,
            "recompute": recompute,
        }
        self.blocks = [
            SwinBlock(
                shift=window_size // 2 if index % 2 else 0,
                drop_path_rate=rate,
                name=f"blocks_{index}",
                dtype=self.dtype_policy,
                **self.block_arguments,
            )
            for index, rate in enumerate(self.drop_path_rates)
        ]
        self.downsample = PatchMerging(dim, name="downsample", dtype=self.dtype_policy) if has_downsample else None

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        for block in self.blocks:
            block.build(input_shape)
        if self.downsample is not None:
            self.downsample.build(input_shape)

    def call(self, inputs: Any) -> tuple[Any, Any]:
        """`(batch, height, width, dim)` to the stage's feature map, of the same shape, and the next stage's input."""
        x = inputs
        mask = self._mask(x) if len(self.blocks) > 1 else None
        for block in self.blocks:
            x = block(x, window_mask=mask)
        return x, x if self.downsample is None else self.downsample(x)

    def compute_output_shape(self, input_shape: tuple[int | None, ...]) -> tuple[tuple[int | None, ...], ...]:
        if self.downsample is None:
            return tuple(input_shape), tuple(input_shape)
        return tuple(input_shape), self.downsample.compute_output_shape(input_shape)

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            **self.block_arguments,
            "drop_path_rates": self.drop_path_rates,
            "has_downsample": self.downsample is not None,
        }

    def _mask(self, x: Any) -> Any:
        """The mask of shifted windows, the same for all blocks that shift."""
        height, width = (side + -side % self.window_size for side in ops.shape(x)[1:3])
        return shifted_window_mask(height, width, self.window_size, self.window_size // 2)


@keras.saving.register_keras_serializable(package="kmaskformer")
class PatchMerging(keras.layers.Layer):
    """Halves the resolution: layer norm and linear map of the channels of each 2x2 patch.

    Odd sides are padded with a zero row or column at the end. The channels of a patch are in the order of its pixels
    (0, 0), (1, 0), (0, 1), (1, 1), row first.
    """

    def __init__(self, dim: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.dim = dim
        self.norm = make_norm("layer", name="norm", dtype=self.dtype_policy)
        self.reduction = linear(2 * dim, 4 * dim, "reduction", self.dtype_policy, use_bias=False)

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        self.norm.build((*input_shape[:-1], 4 * self.dim))
        self.reduction.build((*input_shape[:-1], 4 * self.dim))

    def call(self, inputs: Any) -> Any:
        """`(batch, height, width, dim)` to `(batch, height/2, width/2, 2 * dim)`, sides rounded up."""
        return self.reduction(self.norm(join_patches(pad_to_multiple(inputs, 2))))

    def compute_output_shape(self, input_shape: tuple[int | None, ...]) -> tuple[int | None, ...]:
        return (input_shape[0], *(ceil_div(side, 2) for side in input_shape[1:3]), 2 * self.dim)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "dim": self.dim}


def join_patches(x: Any) -> Any:
    """`(batch, height, width, channels)`, even sides, to `(batch, height/2, width/2, 4 * channels)`."""
    batch, height, width, channels = ops.shape(x)
    x = ops.reshape(x, (batch, height // 2, 2, width // 2, 2, channels))
    x = ops.transpose(x, (0, 1, 3, 4, 2, 5))
    return ops.reshape(x, (batch, height // 2, width // 2, 4 * channels))


def ceil_div(size: int | None, divisor: int) -> int | None:
    """`size / divisor` rounded up; None stays None."""
    return None if size is None else -(-size // divisor)
