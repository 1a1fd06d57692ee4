"""Hugging Face's `config.json` of a MaskFormer, read into a model and written from one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kmaskformer.backbones.resnet import NUM_BLOCKS, ResNet
from kmaskformer.backbones.swin import PATCH_SIZE, SwinTransformer
from kmaskformer.layers.normalization import EPSILON
from kmaskformer.models.maskformer import MaskFormer
from kmaskformer.models.pixel_decoder import FPNPixelDecoder
from kmaskformer.models.transformer_decoder import QueryDecoder
from kmaskformer.structures import DatasetInfo

SWIN_TYPES = ("swin", "maskformer-swin")
# transformers' own default: Swin-B for 384x384.
DEFAULT_BACKBONE = {
    "model_type": "swin",
    "embed_dim": 128,
    "depths": [2, 2, 18, 2],
    "num_heads": [4, 8, 16, 32],
    "window_size": 12,
    "drop_path_rate": 0.3,
}
# Settings that change the computation and have only one value here, with transformers' defaults.
_SWIN_FIXED = {
    "num_channels": 3,
    "patch_size": PATCH_SIZE,
    "hidden_act": "gelu",
    "use_absolute_embeddings": False,
    "layer_norm_eps": EPSILON,
}
_RESNET_FIXED = {
    "num_channels": 3,
    "hidden_act": "relu",
    "downsample_in_first_stage": False,
    "downsample_in_bottleneck": False,
}
_DECODER_FIXED = {"model_type": "detr", "activation_function": "relu", "auxiliary_loss": False}


def model_from_huggingface_config(
    config: Mapping[str, Any], num_classes: int | None = None, **options: Any
) -> MaskFormer:
    """A built MaskFormer with the architecture of a `config.json` and initial weights.

    Args:
        config: The content of the file.
        num_classes: Another number of classes than the file's.
        **options: Further arguments of `MaskFormer`, such as `pixel_mean`; `deep_supervision` is what the file calls
            `use_auxiliary_loss`, which published models have off.

    Raises:
        ValueError: If the file describes something that this package does not have; the message names the setting.
    """
    if config.get("model_type") != "maskformer":
        raise ValueError(f"config.json: `model_type` must be maskformer. Received: {config.get('model_type')!r}")
    labels = class_names(config)
    options.setdefault("deep_supervision", bool(config.get("use_auxiliary_loss", False)))
    if num_classes in (None, len(labels)):
        options.setdefault("dataset_info", DatasetInfo(name="huggingface", class_names=labels))
    width = config.get("fpn_feature_size", 256)
    if width % 32:
        raise ValueError(f"config.json: `fpn_feature_size` must be a multiple of 32. Received: {width}")
    model = MaskFormer(
        backbone=_backbone(config.get("backbone_config") or DEFAULT_BACKBONE),
        pixel_decoder=FPNPixelDecoder(width, config.get("mask_feature_size", 256)),
        transformer_decoder=_decoder(config.get("decoder_config") or {}),
        num_classes=num_classes or len(labels),
        name="maskformer",
        **options,
    )
    model.build()
    return model


def class_names(config: Mapping[str, Any]) -> tuple[str, ...]:
    """Names of the classes in the order of their ids; a name that comes again gets its id behind it."""
    labels = config.get("id2label") or {}
    labels = {int(index): str(name) for index, name in labels.items()}
    count = len(labels) or config.get("num_labels") or config.get("_num_labels") or 2
    if labels and sorted(labels) != list(range(count)):
        raise ValueError(
            f"config.json: the ids of `id2label` must be 0..{count - 1}. Received: {sorted(labels)[:5]}..."
        )
    names: list[str] = []
    for index in range(count):
        name = labels.get(index, f"LABEL_{index}")
        names.append(f"{name} ({index})" if name in names else name)
    return tuple(names)


def _backbone(config: Mapping[str, Any]) -> SwinTransformer | ResNet:
    kind = config.get("model_type")
    if kind in SWIN_TYPES:
        return _swin(config)
    if kind == "resnet":
        return _resnet(config)
    raise ValueError(
        f"config.json: `backbone_config.model_type` must be swin, maskformer-swin or resnet. Received: {kind!r}"
    )


def _swin(config: Mapping[str, Any]) -> SwinTransformer:
    _check_fixed(config, _SWIN_FIXED, "backbone_config")
    return SwinTransformer(
        embed_dim=config.get("embed_dim", 96),
        depths=tuple(config.get("depths", (2, 2, 6, 2))),
        num_heads=tuple(config.get("num_heads", (3, 6, 12, 24))),
        window_size=config.get("window_size", 7),
        mlp_ratio=config.get("mlp_ratio", 4.0),
        qkv_bias=config.get("qkv_bias", True),
        drop_rate=config.get("hidden_dropout_prob", 0.0),
        attention_drop_rate=config.get("attention_probs_dropout_prob", 0.0),
        drop_path_rate=config.get("drop_path_rate", 0.1),
    )


def _resnet(config: Mapping[str, Any]) -> ResNet:
    _check_fixed(config, _RESNET_FIXED, "backbone_config")
    kind, num_blocks = config.get("layer_type", "bottleneck"), tuple(config.get("depths", (3, 4, 6, 3)))
    depths = {"bottleneck": (50, 101), "basic": (18, 34)}
    if kind not in depths:
        raise ValueError(f"config.json: `backbone_config.layer_type` must be basic or bottleneck. Received: {kind!r}")
    published = [depth for depth in depths[kind] if NUM_BLOCKS[depth] == num_blocks]
    return ResNet(
        depth=published[0] if published else depths[kind][0],
        num_blocks=num_blocks,
        stem_channels=config.get("embedding_size", 64),
        channels=tuple(config.get("hidden_sizes", (256, 512, 1024, 2048))),
    )


def _decoder(config: Mapping[str, Any]) -> QueryDecoder:
    _check_fixed(config, _DECODER_FIXED, "decoder_config")
    return QueryDecoder(
        num_queries=config.get("num_queries", 100),
        hidden_dim=config.get("d_model", config.get("hidden_size", 256)),
        num_heads=config.get("decoder_attention_heads", 8),
        feedforward_dim=config.get("decoder_ffn_dim", 2048),
        dropout=config.get("dropout", 0.1),
        decoder_layers=config.get("decoder_layers", 6),
    )


def _check_fixed(config: Mapping[str, Any], fixed: Mapping[str, Any], section: str) -> None:
    for key, expected in fixed.items():
        value = config.get(key, expected)
        if value != expected and value != [expected, expected]:
            raise ValueError(
                f"config.json: `{section}.{key}` must be {expected!r}, all else is not supported. Received: {value!r}"
            )


def huggingface_config(model: MaskFormer) -> dict[str, Any]:
    """The `config.json` of a model.

    Raises:
        ValueError: If transformers has no such architecture; the message names the part.
    """
    _check_model(model)
    info = model.dataset_info or DatasetInfo.numbered(model.num_classes)
    return {
        "architectures": ["MaskFormerForInstanceSegmentation"],
        "model_type": "maskformer",
        "backbone_config": _swin_config(model.backbone)
        if isinstance(model.backbone, SwinTransformer)
        else _resnet_config(model.backbone),
        "decoder_config": _decoder_config(model.transformer_decoder),
        "fpn_feature_size": model.pixel_decoder.conv_dim,
        "mask_feature_size": model.pixel_decoder.mask_dim,
        "id2label": {str(index): name for index, name in enumerate(info.class_names)},
        "label2id": {name: index for index, name in enumerate(info.class_names)},
        # Deep supervision of transformers stops with an error in ordinary calls and reads other layers.
        "use_auxiliary_loss": False,
        "dice_weight": 1.0,
        "cross_entropy_weight": 1.0,
        "mask_weight": 20.0,
        "no_object_weight": 0.1,
        "dtype": "float32",
    }


def _swin_config(backbone: SwinTransformer) -> dict[str, Any]:
    return {
        "model_type": "maskformer-swin",
        "image_size": backbone.pretrain_image_size,
        "patch_size": PATCH_SIZE,
        "num_channels": 3,
        "embed_dim": backbone.embed_dim,
        "depths": list(backbone.depths),
        "num_heads": list(backbone.num_heads),
        "window_size": backbone.window_size,
        "mlp_ratio": backbone.mlp_ratio,
        "qkv_bias": backbone.qkv_bias,
        "hidden_dropout_prob": backbone.drop_rate,
        "attention_probs_dropout_prob": backbone.attention_drop_rate,
        "drop_path_rate": backbone.drop_path_rate,
        "hidden_act": "gelu",
        "layer_norm_eps": EPSILON,
        "use_absolute_embeddings": False,
        "out_features": ["stage1", "stage2", "stage3", "stage4"],
    }


def _resnet_config(backbone: ResNet) -> dict[str, Any]:
    return {
        "model_type": "resnet",
        "num_channels": 3,
        "embedding_size": backbone.stem_channels,
        "hidden_sizes": list(backbone.channels),
        "depths": list(backbone.num_blocks),
        "layer_type": "bottleneck" if backbone.bottleneck else "basic",
        "hidden_act": "relu",
        "downsample_in_first_stage": False,
        "downsample_in_bottleneck": False,
        "out_features": ["stage1", "stage2", "stage3", "stage4"],
    }


def _decoder_config(decoder: QueryDecoder) -> dict[str, Any]:
    options = decoder.layer_options
    return {
        "model_type": "detr",
        "d_model": decoder.hidden_dim,
        "num_queries": decoder.num_queries,
        "encoder_layers": 0,
        "encoder_ffn_dim": options["feedforward_dim"],
        "encoder_attention_heads": options["num_heads"],
        "decoder_layers": decoder.decoder_layers,
        "decoder_ffn_dim": options["feedforward_dim"],
        "decoder_attention_heads": options["num_heads"],
        "dropout": options["dropout"],
        "attention_dropout": options["dropout"],
        "activation_dropout": options["dropout"],
        "activation_function": "relu",
    }


def _check_model(model: Any) -> None:
    missing = _missing_in_huggingface(model)
    if missing:
        raise ValueError(
            f"transformers has no MaskFormer with {'; nor with '.join(missing)}: the model cannot be exported."
        )


def _missing_in_huggingface(model: Any) -> list[str]:
    if not isinstance(model, MaskFormer):
        return [f"the head of {type(model).__name__} (it has only mask classification)"]
    backbone, pixel_decoder, decoder = model.backbone, model.pixel_decoder, model.transformer_decoder
    parts = {
        f"the pixel decoder {type(pixel_decoder).__name__}": type(pixel_decoder) is not FPNPixelDecoder,
        "a pixel decoder without group norm": pixel_decoder.norm != "group",
        "pre-norm transformer layers": decoder.layer_options["pre_norm"],
        "encoder layers before the transformer decoder": decoder.encoder_layers > 0,
        f"a transformer decoder over {decoder.in_feature}": decoder.in_feature != "res5",
        "an input projection that keeps the number of channels": decoder.enforce_input_projection
        and getattr(backbone, "feature_channels", {}).get("res5") == decoder.hidden_dim,
    }
    if isinstance(backbone, ResNet):
        parts["a deep ResNet stem"] = backbone.stem_kind != "basic"
        parts["dilated convolutions in res5 (multi_grid)"] = any(rate != 1 for rate in backbone.multi_grid)
    elif isinstance(backbone, SwinTransformer):
        parts["absolute position embeddings in Swin"] = backbone.absolute_position_embedding
        parts["a Swin patch embedding without norm"] = not backbone.patch_norm
        parts["another scale of Swin's attention (qk_scale)"] = backbone.qk_scale is not None
    else:
        parts[f"the backbone {type(backbone).__name__}"] = True
    return [part for part, is_missing in parts.items() if is_missing]
