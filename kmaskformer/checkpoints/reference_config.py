"""The architecture of a reference checkpoint, told from the names and shapes of its arrays."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from kmaskformer.backbones.resnet import NUM_BLOCKS, ResNet
from kmaskformer.backbones.swin import SwinTransformer
from kmaskformer.checkpoints.reference_names import REFERENCE_MAP
from kmaskformer.models.maskformer import MaskFormer
from kmaskformer.models.per_pixel import PerPixelBaseline, PerPixelBaselinePlus
from kmaskformer.models.pixel_decoder import FPNPixelDecoder, TransformerFPNPixelDecoder
from kmaskformer.models.segmentation_model import SegmentationModel
from kmaskformer.models.transformer_decoder import QueryDecoder

HEAD, PIXEL_DECODER = "sem_seg_head.predictor", "sem_seg_head.pixel_decoder"
HEAD_CHANNELS = 32
"""Channels of an attention head in every published model: the one number that no shape tells."""


def model_from_reference_arrays(arrays: Mapping[str, np.ndarray], num_classes: int | None = None) -> SegmentationModel:
    """A built model of the architecture that the arrays are for, with initial weights.

    Shapes do not tell everything: attention heads are taken to have 32 channels, a stem of three convolutions to come
    with R101c's dilated res5, and images to be padded to multiples of 32. A configuration says what differs.

    Args:
        arrays: `{name: array}` under the reference's names, of any version.
        num_classes: Another number of classes than the arrays'.

    Raises:
        ValueError: If the names are not those of a reference checkpoint.
    """
    shapes = {REFERENCE_MAP.canonical(name): np.shape(array) for name, array in arrays.items()}
    if f"{PIXEL_DECODER}.mask_features.weight" not in shapes:
        first = ", ".join(sorted(shapes)[:5]) or "none"
        raise ValueError(
            "Expected the names of a reference checkpoint, such as sem_seg_head.pixel_decoder.mask_features.weight. "
            f"Received {len(shapes)} names, first: {first}"
        )
    try:
        return _model(shapes, num_classes)
    except KeyError as error:
        raise ValueError(
            f"Expected the names of one of the reference's models. Received {len(shapes)} names without {error}. Its "
            "successors, such as Mask2Former, are other models."
        ) from error


def _model(shapes: Mapping[str, tuple[int, ...]], num_classes: int | None) -> SegmentationModel:
    parts: dict[str, Any] = {"backbone": _backbone(shapes), "pixel_decoder": _pixel_decoder(shapes)}
    if f"{HEAD}.weight" in shapes:
        model = PerPixelBaseline(**parts, num_classes=num_classes or shapes[f"{HEAD}.weight"][0], name="per_pixel")
    elif f"{HEAD}.class_embed.weight" in shapes:
        parts["transformer_decoder"] = _query_decoder(shapes, shapes[f"{HEAD}.query_embed.weight"][0])
        count = num_classes or shapes[f"{HEAD}.class_embed.weight"][0] - 1
        model = MaskFormer(**parts, num_classes=count, name="maskformer")
    else:
        count = num_classes or shapes[f"{HEAD}.query_embed.weight"][0]
        parts["transformer_decoder"] = _query_decoder(shapes, count)
        model = PerPixelBaselinePlus(**parts, num_classes=count, name="per_pixel_plus")
    model.build()
    return model


def _count(shapes: Mapping[str, Any], pattern: str) -> int:
    """Number of different values of the pattern's group."""
    return len({match[1] for name in shapes if (match := re.match(pattern, name))})


def _backbone(shapes: Mapping[str, tuple[int, ...]]) -> SwinTransformer | ResNet:
    if "backbone.patch_embed.proj.weight" in shapes:
        return _swin(shapes)
    num_blocks = tuple(_count(shapes, rf"backbone\.res{stage}\.(\d+)\.") for stage in (2, 3, 4, 5))
    bottleneck = "backbone.res2.0.conv3.weight" in shapes
    depths = [depth for depth in NUM_BLOCKS if (depth >= 50) == bottleneck]
    published = [depth for depth in depths if NUM_BLOCKS[depth] == num_blocks]
    deep = "backbone.stem.conv3.weight" in shapes
    last = "conv3" if bottleneck else "conv2"
    return ResNet(
        depth=published[0] if published else depths[0],
        stem="deep" if deep else "basic",
        multi_grid=(1, 2, 4) if deep else (1, 1, 1),
        num_blocks=num_blocks,
        stem_channels=shapes[f"backbone.stem.conv{3 if deep else 1}.weight"][0],
        channels=tuple(shapes[f"backbone.res{stage}.0.{last}.weight"][0] for stage in (2, 3, 4, 5)),
    )


def _swin(shapes: Mapping[str, tuple[int, ...]]) -> SwinTransformer:
    tables = [shapes[f"backbone.layers.{i}.blocks.0.attn.relative_position_bias_table"] for i in range(4)]
    dim = shapes["backbone.patch_embed.proj.weight"][0]
    positions = shapes.get("backbone.absolute_pos_embed")
    return SwinTransformer(
        embed_dim=dim,
        depths=tuple(_count(shapes, rf"backbone\.layers\.{i}\.blocks\.(\d+)\.") for i in range(4)),
        num_heads=tuple(heads for _, heads in tables),
        window_size=(math.isqrt(tables[0][0]) + 1) // 2,
        mlp_ratio=shapes["backbone.layers.0.blocks.0.mlp.fc1.weight"][0] / dim,
        qkv_bias="backbone.layers.0.blocks.0.attn.qkv.bias" in shapes,
        patch_norm="backbone.patch_embed.norm.weight" in shapes,
        absolute_position_embedding=positions is not None,
        pretrain_image_size=4 * positions[-1] if positions else 224,
    )


def _pixel_decoder(shapes: Mapping[str, tuple[int, ...]]) -> FPNPixelDecoder:
    mask_dim, conv_dim = shapes[f"{PIXEL_DECODER}.mask_features.weight"][:2]
    norm = "group" if f"{PIXEL_DECODER}.layer_1.norm.weight" in shapes else "none"
    encoder = f"{PIXEL_DECODER}.transformer.encoder"
    if f"{PIXEL_DECODER}.input_proj.weight" not in shapes:
        return FPNPixelDecoder(conv_dim, mask_dim, norm)
    return TransformerFPNPixelDecoder(
        conv_dim,
        mask_dim,
        norm,
        encoder_layers=_count(shapes, re.escape(encoder) + r"\.layers\.(\d+)\."),
        num_heads=max(1, conv_dim // HEAD_CHANNELS),
        feedforward_dim=shapes[f"{encoder}.layers.0.linear1.weight"][0],
        pre_norm=f"{encoder}.norm.weight" in shapes,
    )


def _query_decoder(shapes: Mapping[str, tuple[int, ...]], num_queries: int) -> QueryDecoder:
    hidden_dim = shapes[f"{HEAD}.query_embed.weight"][1]
    has_projection = f"{HEAD}.input_proj.weight" in shapes
    from_encoder = f"{PIXEL_DECODER}.input_proj.weight" in shapes and not has_projection
    transformer = re.escape(f"{HEAD}.transformer")
    return QueryDecoder(
        num_queries,
        hidden_dim,
        num_heads=max(1, hidden_dim // HEAD_CHANNELS),
        feedforward_dim=shapes[f"{HEAD}.transformer.decoder.layers.0.linear1.weight"][0],
        encoder_layers=_count(shapes, transformer + r"\.encoder\.layers\.(\d+)\."),
        decoder_layers=_count(shapes, transformer + r"\.decoder\.layers\.(\d+)\."),
        pre_norm=f"{HEAD}.transformer.encoder.norm.weight" in shapes,
        in_feature="transformer_encoder" if from_encoder else "res5",
        enforce_input_projection=has_projection,
    )
