"""ResNet in torchvision's layout, with frozen or trainable batch norm, and the deep-stem variant R101c."""

from __future__ import annotations

import functools
from typing import Any

import keras
from keras import ops

from kmaskformer.backbones.features import FEATURES
from kmaskformer.layers.convolution import Convolution, strided_size

NUM_BLOCKS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3)}
STEM_CHANNELS = {"basic": 64, "deep": 128}


@keras.saving.register_keras_serializable(package="kmaskformer")
class ResNet(keras.layers.Layer):
    """Residual network that returns four feature maps.

    `ResNet(50)` and `ResNet(101)` take torchvision's weights; `ResNet(101, stem="deep", multi_grid=(1, 2, 4))` is the
    R101c of DeepLab, which the Cityscapes models use.

    Args:
        depth: 18, 34 (two 3x3 convolutions a block), 50 or 101 (bottleneck blocks, stride in the 3x3).
        norm: `frozen` for pretrained weights, `batch` for training from scratch.
        stem: `basic` (7x7) or `deep` (three 3x3).
        multi_grid: Dilation of the 3x3 convolution of each res5 block. The first must be 1: it has the stride.
        frozen_stages: Number of parts, counted from the stem on, that are not trained: 1 = stem, 2 = stem and res2.
        num_blocks: Blocks of each of the four stages; None for those of `depth`, which then only tells the kind of
            block.
        stem_channels: Channels of the stem; None for 64 (`basic`) or 128 (`deep`).
        channels: Channels of each feature map; None for 256, 512, 1024, 2048 (a quarter of it with two 3x3 a block).
        recompute: Whether blocks are computed again in the backward pass instead of keeping what they computed; it
            needs `norm="frozen"`.
        name: Name of the layer.

    Raises:
        ValueError: If an argument is not one of the values above.

    References:
        - [Deep Residual Learning for Image Recognition](https://arxiv.org/abs/1512.03385)
        - [Rethinking Atrous Convolution](https://arxiv.org/abs/1706.05587), multi-grid
    """

    def __init__(
        self,
        depth: int = 50,
        norm: str = "frozen",
        stem: str = "basic",
        multi_grid: tuple[int, ...] = (1, 1, 1),
        frozen_stages: int = 0,
        num_blocks: tuple[int, ...] | None = None,
        stem_channels: int | None = None,
        channels: tuple[int, ...] | None = None,
        recompute: bool = False,
        name: str = "backbone",
        **kwargs: Any,
    ) -> None:
        super().__init__(name=name, **kwargs)
        if recompute and norm != "frozen":
            raise ValueError(f'`recompute` needs norm="frozen": statistics would count twice. Received: norm={norm!r}')
        _check_arguments(depth, norm, stem, multi_grid, frozen_stages)
        self.depth, self.norm, self.stem_kind = depth, norm, stem
        self.multi_grid, self.frozen_stages = tuple(multi_grid), frozen_stages
        self.recompute = recompute
        self.bottleneck = depth >= 50
        self.num_blocks = tuple(num_blocks or NUM_BLOCKS[depth])
        self.stem_channels = stem_channels or STEM_CHANNELS[stem]
        self.channels = tuple(channels or (64 * 2**index * (4 if self.bottleneck else 1) for index in range(4)))
        _check_sizes(self.num_blocks, self.channels, self.bottleneck, self.multi_grid)
        self.stem = ResNetStem(stem, norm, self.stem_channels, name="stem", dtype=self.dtype_policy)
        self.res2, self.res3, self.res4, self.res5 = (self._make_stage(index) for index in range(4))
        for part in [self.stem, *self._stages()][:frozen_stages]:
            part.trainable = False

    @property
    def feature_channels(self) -> dict[str, int]:
        """Number of channels of each feature map."""
        return {name: stage.filters for name, stage in zip(FEATURES, self._stages(), strict=True)}

    @property
    def size_divisibility(self) -> int:
        """Multiple of the sides of images that it asks for: 0, none."""
        return 0

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        shape = input_shape
        for part in [self.stem, *self._stages()]:
            part.build(shape)
            shape = part.compute_output_shape(shape)

    def call(self, images: Any, training: bool | None = None) -> dict[str, Any]:
        """Features of images.

        Args:
            images: `(batch, height, width, 3)`, normalised.
            training: Whether `batch` norms use and update batch statistics.

        Returns:
            `res2`, `res3`, `res4`, `res5`: `(batch, height/s, width/s, channels)` with s = 4, 8, 16, 32, sides rounded
            up.
        """
        x = self.stem(images)
        features = {}
        for name, stage in zip(FEATURES, self._stages(), strict=True):
            x = features[name] = stage(x, training=training)
        return features

    def compute_output_shape(self, input_shape: tuple[int | None, ...]) -> dict[str, tuple[int | None, ...]]:
        shape, shapes = self.stem.compute_output_shape(input_shape), {}
        for name, stage in zip(FEATURES, self._stages(), strict=True):
            shape = shapes[name] = stage.compute_output_shape(shape)
        return shapes

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "depth": self.depth,
            "norm": self.norm,
            "stem": self.stem_kind,
            "multi_grid": list(self.multi_grid),
            "frozen_stages": self.frozen_stages,
            "num_blocks": list(self.num_blocks),
            "stem_channels": self.stem_channels,
            "channels": list(self.channels),
            "recompute": self.recompute,
        }

    def _stages(self) -> list[ResNetStage]:
        return [self.res2, self.res3, self.res4, self.res5]

    def _make_stage(self, index: int) -> ResNetStage:
        has_grid = index == 3 and any(dilation > 1 for dilation in self.multi_grid)
        return ResNetStage(
            width=self.channels[index] // (4 if self.bottleneck else 1),
            strides=1 if index == 0 else 2,
            dilations=self.multi_grid if has_grid else (1,) * self.num_blocks[index],
            bottleneck=self.bottleneck,
            norm=self.norm,
            recompute=self.recompute,
            name=FEATURES[index],
            dtype=self.dtype_policy,
        )


@keras.saving.register_keras_serializable(package="kmaskformer")
class ResNetStem(keras.layers.Layer):
    """First layers of a ResNet: images to a quarter of their size, by default 64 (`basic`) or 128 channels (`deep`)."""

    def __init__(self, kind: str = "basic", norm: str = "frozen", channels: int | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.kind, self.norm, self.channels = kind, norm, channels or STEM_CHANNELS[kind]
        # filters, kernel size, strides
        deep = [(self.channels // 2, 3, 2), (self.channels // 2, 3, 1), (self.channels, 3, 1)]
        layers = [(self.channels, 7, 2)] if kind == "basic" else deep
        self.convolutions = [
            Convolution(*layer, norm=norm, activation="relu", name=f"conv{index}", dtype=self.dtype_policy)
            for index, layer in enumerate(layers, start=1)
        ]

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        for convolution in self.convolutions:
            convolution.build(input_shape)
            input_shape = convolution.compute_output_shape(input_shape)

    def call(self, images: Any) -> Any:
        """`(batch, height, width, 3)` to `(batch, height/4, width/4, channels)`."""
        x = images
        for convolution in self.convolutions:
            x = convolution(x)
        x = ops.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)), constant_values=float("-inf"))
        return ops.max_pool(x, pool_size=3, strides=2, padding="valid", data_format="channels_last")

    def compute_output_shape(self, input_shape: tuple[int | None, ...]) -> tuple[int | None, ...]:
        for convolution in self.convolutions:
            input_shape = convolution.compute_output_shape(input_shape)
        batch, height, width, channels = input_shape
        return (batch, strided_size(height, 2), strided_size(width, 2), channels)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "kind": self.kind, "norm": self.norm, "channels": self.channels}


@keras.saving.register_keras_serializable(package="kmaskformer")
class ResNetStage(keras.layers.Layer):
    """Residual blocks of one resolution, named "0", "1", ...

    Args:
        width: Channels of the 3x3 convolutions.
        strides: Step of the first block.
        dilations: Dilation of the 3x3 convolution of each block, as many as there are blocks.
        bottleneck: Whether blocks are 1x1, 3x3, 1x1 (output 4 * width) or 3x3, 3x3 (output width).
        norm: `frozen` or `batch`.
    """

    def __init__(
        self,
        width: int,
        strides: int,
        dilations: tuple[int, ...],
        bottleneck: bool,
        norm: str,
        recompute: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.recompute = recompute
        self.width, self.strides, self.dilations = width, strides, tuple(dilations)
        self.bottleneck, self.norm = bottleneck, norm
        self.filters = width * 4 if bottleneck else width
        self.blocks = [
            ResidualBlock(
                width,
                strides=strides if index == 0 else 1,
                dilation=dilation,
                bottleneck=bottleneck,
                norm=norm,
                name=str(index),
                dtype=self.dtype_policy,
            )
            for index, dilation in enumerate(self.dilations)
        ]

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        for block in self.blocks:
            block.build(input_shape)
            input_shape = block.compute_output_shape(input_shape)

    def call(self, inputs: Any, training: bool | None = None) -> Any:
        """`(batch, height, width, channels)` to `(batch, height/strides, width/strides, filters)`."""
        x = inputs
        for block in self.blocks:
            # Told what it is: the second computation is outside of this call, where a layer cannot know.
            step = functools.partial(block, training=training)
            x = keras.remat(step)(x) if self.recompute and training else step(x)
        return x

    def compute_output_shape(self, input_shape: tuple[int | None, ...]) -> tuple[int | None, ...]:
        batch, height, width, _ = input_shape
        return (batch, strided_size(height, self.strides), strided_size(width, self.strides), self.filters)

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "width": self.width,
            "strides": self.strides,
            "dilations": list(self.dilations),
            "bottleneck": self.bottleneck,
            "norm": self.norm,
            "recompute": self.recompute,
        }


@keras.saving.register_keras_serializable(package="kmaskformer")
class ResidualBlock(keras.layers.Layer):
    """`relu(x + f(x))` with f of two 3x3 convolutions, or of 1x1, 3x3, 1x1; see `ResNetStage` for the arguments.

    Where x and f(x) differ in size or channels, x goes through a strided 1x1 convolution, `shortcut`.
    """

    def __init__(self, width: int, strides: int, dilation: int, bottleneck: bool, norm: str, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.width, self.strides, self.dilation = width, strides, dilation
        self.bottleneck, self.norm = bottleneck, norm
        self.filters = width * 4 if bottleneck else width
        # filters, kernel size, strides, dilation, activation
        branch = [(width, 3, strides, dilation, "relu"), (width, 3, 1, dilation, None)]
        if bottleneck:
            branch = [(width, 1, 1, 1, "relu"), (width, 3, strides, dilation, "relu"), (self.filters, 1, 1, 1, None)]
        self.branch = [self._convolution(f"conv{index}", *arguments) for index, arguments in enumerate(branch, start=1)]
        self.shortcut = None

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        if self.strides > 1 or input_shape[-1] != self.filters:
            self.shortcut = self._convolution("shortcut", self.filters, 1, self.strides, 1, None)
            self.shortcut.build(input_shape)
        for convolution in self.branch:
            convolution.build(input_shape)
            input_shape = convolution.compute_output_shape(input_shape)

    def call(self, inputs: Any, training: bool | None = None) -> Any:
        """`(batch, height, width, channels)` to `(batch, height/strides, width/strides, filters)`."""
        x = inputs
        for convolution in self.branch:
            x = convolution(x, training=training)
        shortcut = inputs if self.shortcut is None else self.shortcut(inputs, training=training)
        return ops.relu(x + shortcut)

    def compute_output_shape(self, input_shape: tuple[int | None, ...]) -> tuple[int | None, ...]:
        batch, height, width, _ = input_shape
        return (batch, strided_size(height, self.strides), strided_size(width, self.strides), self.filters)

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "width": self.width,
            "strides": self.strides,
            "dilation": self.dilation,
            "bottleneck": self.bottleneck,
            "norm": self.norm,
        }

    def _convolution(
        self, name: str, filters: int, kernel_size: int, strides: int, dilation: int, activation: str | None
    ) -> Convolution:
        return Convolution(
            filters,
            kernel_size,
            strides=strides,
            dilation=dilation,
            norm=self.norm,
            activation=activation,
            name=name,
            dtype=self.dtype_policy,
        )


def _check_arguments(depth: int, norm: str, stem: str, multi_grid: tuple[int, ...], frozen_stages: int) -> None:
    choices = (
        ("depth", depth, tuple(NUM_BLOCKS)),
        ("norm", norm, ("frozen", "batch")),
        ("stem", stem, tuple(STEM_CHANNELS)),
        ("frozen_stages", frozen_stages, tuple(range(6))),
    )
    for argument, value, allowed in choices:
        if value not in allowed:
            raise ValueError(f"`{argument}` of a ResNet must be one of {allowed}. Received: {argument}={value!r}")
    if len(multi_grid) != 3 or multi_grid[0] != 1:
        raise ValueError(
            f"`multi_grid` must be three dilations, the first of them 1. Received: multi_grid={tuple(multi_grid)}"
        )
    if depth < 50 and any(dilation != 1 for dilation in multi_grid):
        raise ValueError(
            f"`multi_grid` needs a ResNet with bottleneck blocks (depth 50 or 101). Received: depth={depth}, "
            f"multi_grid={tuple(multi_grid)}"
        )


def _check_sizes(
    num_blocks: tuple[int, ...], channels: tuple[int, ...], bottleneck: bool, multi_grid: tuple[int, ...]
) -> None:
    for argument, values in (("num_blocks", num_blocks), ("channels", channels)):
        if len(values) != len(FEATURES) or min(values) < 1:
            raise ValueError(f"`{argument}` must be four positive numbers, one per stage. Received: {values}")
    if bottleneck and any(count % 4 for count in channels):
        raise ValueError(f"`channels` of a ResNet with bottleneck blocks must be multiples of 4. Received: {channels}")
    if any(dilation > 1 for dilation in multi_grid) and num_blocks[-1] != len(multi_grid):
        raise ValueError(
            "`multi_grid` gives the dilation of each res5 block. "
            f"Received: multi_grid={multi_grid}, num_blocks={num_blocks}"
        )
