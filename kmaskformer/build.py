"""From a configuration to model, loss, optimizer and evaluators; `build_data.py` does the same for data.

A choice among implementations is a dict in this file; there is no registry.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras

from kmaskformer import config as configs
from kmaskformer.backbones.coordinates import CoordinateBackbone
from kmaskformer.backbones.resnet import ResNet
from kmaskformer.backbones.swin import SWIN_BASE, SWIN_LARGE, SWIN_SMALL, SWIN_TINY, SwinTransformer
from kmaskformer.checkpoints.backbone_names import load_backbone_weights
from kmaskformer.checkpoints.model_files import load_weights
from kmaskformer.evaluation.evaluator import PanopticEvaluator, SemanticEvaluator
from kmaskformer.evaluation.instance_evaluator import InstanceEvaluator
from kmaskformer.evaluation.semantic_evaluators import (
    CityscapesEvaluator,
    PanopticStuffEvaluator,
    SemanticBoundaryEvaluator,
)
from kmaskformer.inference.augmented import Augmentation
from kmaskformer.inference.tiles import Tiling
from kmaskformer.losses.matcher import FixedMatcher, HungarianMatcher
from kmaskformer.losses.per_pixel_criterion import PerPixelCriterion
from kmaskformer.losses.point_sampling import PointSampling
from kmaskformer.losses.set_criterion import SetCriterion
from kmaskformer.models.maskformer import MaskFormer
from kmaskformer.models.per_pixel import PerPixelBaseline, PerPixelBaselinePlus
from kmaskformer.models.pixel_decoder import FPNPixelDecoder, TransformerFPNPixelDecoder
from kmaskformer.models.segmentation_model import SegmentationModel
from kmaskformer.models.transformer_decoder import QueryDecoder
from kmaskformer.structures import DatasetInfo
from kmaskformer.training.optimizer import SGD, AdamW
from kmaskformer.training.schedules import WarmupMultiStep, WarmupPoly

RESNETS = {
    "resnet18": {"depth": 18},
    "resnet34": {"depth": 34},
    "resnet50": {"depth": 50},
    "resnet101": {"depth": 101},
    "resnet101c": {"depth": 101, "stem": "deep", "multi_grid": (1, 2, 4)},
}
MODELS = {"maskformer": MaskFormer, "per_pixel": PerPixelBaseline, "per_pixel_plus": PerPixelBaselinePlus}
SWINS = {"swin_tiny": SWIN_TINY, "swin_small": SWIN_SMALL, "swin_base": SWIN_BASE, "swin_large": SWIN_LARGE}
OWN_FIELDS = {
    "ResNets": ("norm", "frozen_stages", "channels"),
    "Swin": (
        "mlp_ratio",
        "qkv_bias",
        "qk_scale",
        "drop_rate",
        "attention_drop_rate",
        "drop_path_rate",
        "absolute_position_embedding",
        "pretrain_image_size",
        "patch_norm",
    ),
}
"""Fields of `model.backbone` that act on one kind of backbone only."""


def build_model(config: configs.ModelConfig, dataset_info: DatasetInfo | None = None) -> SegmentationModel:
    """A built model.

    Args:
        config: The `model` section of a configuration.
        dataset_info: Names, colours and things of the classes.

    Returns:
        The model, with all weights created, and read from `config.weights`, or those of the backbone from
        `config.backbone.weights`, where that is set.

    Raises:
        ValueError: If `dataset_info` has another number of classes than the model, a `per_pixel_plus` model has not
            one query per class, or an option is for another kind of backbone.
        FileNotFoundError: If `config.weights` or `config.backbone.weights` names no file.
    """
    backbone = _build_backbone(config.backbone, config.precision)
    divisibility = config.size_divisibility
    options: dict[str, Any] = {}
    if config.name != "per_pixel":
        decoder = QueryDecoder(**vars(config.transformer_decoder), dtype=config.precision)
        options = {"transformer_decoder": decoder, "deep_supervision": config.deep_supervision}
    model = MODELS[config.name](
        backbone=backbone,
        pixel_decoder=_build_pixel_decoder(config.pixel_decoder, config.precision),
        num_classes=config.num_classes,
        size_divisibility=backbone.size_divisibility if divisibility < 0 else divisibility,
        pixel_mean=config.pixel_mean,
        pixel_std=config.pixel_std,
        dataset_info=dataset_info,
        dtype=config.precision,
        name=config.name,
        **options,
    )
    model.build((None, None, None, 3))
    if config.weights:
        load_weights(model, config.weights)
    elif config.backbone.weights:
        _load_backbone_weights(model, config.backbone.weights)
    return model


def _load_backbone_weights(model: SegmentationModel, file: str) -> None:
    path = Path(file).expanduser()
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such file, named by model.backbone.weights")
    try:
        load_backbone_weights(model, path)
    except ValueError as error:
        raise ValueError(
            f"{path}: cannot give the backbone its weights: {error}. Check model.backbone.name and channels."
        ) from error


def build_criterion(config: configs.LossConfig) -> SetCriterion | PerPixelCriterion:
    """The loss, from the `loss` section of a configuration."""
    if config.name == "per_pixel":
        return PerPixelCriterion(
            weight=config.cross_entropy_weight,
            deep_supervision=config.deep_supervision,
            ce_normalization=config.ce_normalization,
        )
    costs = {"cost_class": config.cost_class, "cost_mask": config.cost_mask, "cost_dice": config.cost_dice}
    fixed = config.matcher == "fixed"
    return SetCriterion(
        weights={
            "loss_ce": config.cross_entropy_weight,
            "loss_mask": config.mask_weight,
            "loss_dice": config.dice_weight,
        },
        matcher=FixedMatcher()
        if fixed
        else HungarianMatcher(**costs, solver=config.matcher, ignore_void=config.ignore_void),
        no_object_weight=config.no_object_weight,
        deep_supervision=config.deep_supervision,
        ce_normalization=config.ce_normalization,
        mask_stride=config.mask_stride,
        point_sampling=_build_point_sampling(config),
        ignore_void=config.ignore_void,
    )


def _build_point_sampling(config: configs.LossConfig) -> PointSampling | None:
    if not config.num_points:
        return None
    return PointSampling(config.num_points, config.oversample_ratio, config.importance_ratio)


def build_optimizer(config: configs.OptimizerConfig, skip_nonfinite: bool = False) -> keras.optimizers.Optimizer:
    """The optimizer with its schedule, from the `optimizer` section of a configuration.

    Args:
        config: The section.
        skip_nonfinite: Whether updates whose gradient is not finite are left out.

    Raises:
        ValueError: If the schedule needs a number of steps and has none (`load_config` fills it in).
    """
    options = {
        "learning_rate": _build_schedule(config),
        "weight_decay": config.weight_decay,
        "backbone_multiplier": config.backbone_multiplier,
        "clip_norm": config.clip_norm or None,
        "skip_nonfinite": skip_nonfinite,
    }
    if config.ema:
        options |= {"use_ema": True, "ema_momentum": config.ema}
    return AdamW(**options) if config.name == "adamw" else SGD(**options, momentum=config.momentum)


def build_evaluators(config: configs.EvaluationConfig) -> list[Any]:
    """The evaluators, from the `evaluation` section of a configuration; `evaluate` tells them the label space."""
    semantic = {"inference": config.inference, "restore": "masks" if config.before_inference else "scores"}
    builders: dict[str, Callable[[], Any]] = {
        "semantic": lambda: SemanticEvaluator(**semantic),
        "semantic_boundary": lambda: SemanticBoundaryEvaluator(**semantic),
        "panoptic_stuff": lambda: PanopticStuffEvaluator(**semantic),
        "cityscapes": lambda: CityscapesEvaluator(**semantic),
        "instance": lambda: InstanceEvaluator(inference=config.inference),
        "panoptic": lambda: PanopticEvaluator(
            object_mask_threshold=config.object_mask_threshold,
            overlap_threshold=config.overlap_threshold,
            inference=config.inference,
        ),
    }
    return [builders[metric]() for metric in config.metrics]


def build_augmentation(config: configs.ViewsConfig) -> Augmentation | None:
    """The test-time augmentation, from `evaluation.augmentation`; None where it is off or lists no sizes."""
    if not config.enabled or not config.shortest_edges:
        return None
    return Augmentation(config.shortest_edges, config.longest_edge or None, config.flip, config.resize_twice)


def build_tiling(config: configs.EvaluationConfig) -> Tiling | None:
    """The tiling of images, from the `evaluation` section; None where the model sees whole images."""
    return Tiling(config.tile_size, config.tile_overlap) if config.tile_size else None


def _build_backbone(config: configs.BackboneConfig, precision: str) -> keras.layers.Layer:
    _check_own_fields(config)
    backbone = _build_resnet(config, precision) if config.name in RESNETS else _build_swin(config, precision)
    if not config.coordinate_frequencies:
        return backbone
    return CoordinateBackbone(backbone, config.coordinate_frequencies, dtype=precision)


def _check_own_fields(config: configs.BackboneConfig) -> None:
    """Fails for options that would silently do nothing; one that is off (`drop_path_rate: 0`) says the truth."""
    other = "Swin" if config.name in RESNETS else "ResNets"
    default = configs.BackboneConfig()
    values = {field: getattr(config, field) for field in OWN_FIELDS[other]}
    given = [f"model.backbone.{field}={v!r}" for field, v in values.items() if v and v != getattr(default, field)]
    if given:
        raise ValueError(f"{', '.join(given)}: acts on {other} only, and the backbone is {config.name}. Leave it out.")


def _build_resnet(config: configs.BackboneConfig, precision: str) -> ResNet:
    options: dict[str, Any] = dict(RESNETS[config.name], norm=config.norm, frozen_stages=config.frozen_stages)
    if config.channels:
        options |= {"channels": config.channels, "stem_channels": config.channels[0]}
    return ResNet(**options, recompute=config.recompute, dtype=precision)


def _build_swin(config: configs.BackboneConfig, precision: str) -> SwinTransformer:
    return SwinTransformer(
        **SWINS[config.name],
        mlp_ratio=config.mlp_ratio,
        qkv_bias=config.qkv_bias,
        qk_scale=config.qk_scale or None,
        drop_rate=config.drop_rate,
        attention_drop_rate=config.attention_drop_rate,
        drop_path_rate=config.drop_path_rate,
        absolute_position_embedding=config.absolute_position_embedding,
        pretrain_image_size=config.pretrain_image_size,
        patch_norm=config.patch_norm,
        recompute=config.recompute,
        dtype=precision,
    )


def _build_pixel_decoder(config: configs.PixelDecoderConfig, precision: str) -> keras.layers.Layer:
    options = dict(vars(config), dtype=precision)
    if options.pop("name") == "transformer_fpn":
        return TransformerFPNPixelDecoder(**options)
    return FPNPixelDecoder(config.conv_dim, config.mask_dim, config.norm, dtype=precision)


def _build_schedule(config: configs.OptimizerConfig) -> Any:
    schedule = config.schedule
    warmup = {"warmup_steps": schedule.warmup_steps, "warmup_factor": schedule.warmup_factor}
    if schedule.name == "poly":
        return WarmupPoly(config.learning_rate, schedule.total_steps, schedule.power, **warmup)
    milestones = schedule.milestones if schedule.name == "multistep" else ()
    return WarmupMultiStep(config.learning_rate, milestones, schedule.gamma, **warmup)
