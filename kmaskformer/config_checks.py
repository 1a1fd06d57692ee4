"""Checks of a configuration that need more than a field's type; each error names file and field."""

from __future__ import annotations

import dataclasses
import math
import operator
import typing
from collections.abc import Iterator
from typing import Any

from kmaskformer.strict_yaml import ConfigError, choice_error, flat

if typing.TYPE_CHECKING:
    from kmaskformer.config import Config

SOURCES = (
    "shapes",
    "semantic_folder",
    "instance_folder",
    "coco_panoptic",
    "coco_instance",
    "cityscapes_semantic",
    "cityscapes_panoptic",
    "examples",
)
"""Kinds of datasets, beside those of TensorFlow Datasets."""

_POSITIVE = (
    "model.num_classes",
    "model.pixel_decoder.conv_dim",
    "model.pixel_decoder.mask_dim",
    "model.transformer_decoder.num_queries",
    "model.transformer_decoder.decoder_layers",
    "data.batch_size",
    "data.test_batch_size",
    "data.workers",
    "loss.mask_stride",
    "training.steps",
    "training.log_every",
    "training.accumulation_steps",
    "data.augmentation.crop",
    "evaluation.augmentation.shortest_edges",
    "data.augmentation.shortest_edges",
)
_NOT_NEGATIVE = (
    "model.pixel_decoder.encoder_layers",
    "model.transformer_decoder.encoder_layers",
    "optimizer.learning_rate",
    "optimizer.weight_decay",
    "optimizer.clip_norm",
    "optimizer.backbone_multiplier",
    "optimizer.schedule.total_steps",
    "optimizer.schedule.warmup_steps",
    "loss.no_object_weight",
    "loss.num_points",
    "data.train.limit",
    "data.train.count",
    "data.val.limit",
    "data.val.count",
    "data.max_segments",
    "data.generated_classes",
    "data.test_shortest_edge",
    "data.test_longest_edge",
    "data.augmentation.longest_edge",
    "evaluation.tile_size",
    "evaluation.augmentation.longest_edge",
    "training.evaluate_every",
    "training.checkpoint_every",
)
_FRACTIONS = (
    "loss.importance_ratio",
    "evaluation.object_mask_threshold",
    "evaluation.overlap_threshold",
    "evaluation.score_threshold",
    "evaluation.tile_overlap",
    "data.augmentation.largest_class",
    "data.augmentation.range_crop_probability",
)
_NORM_GROUPS = 32
_LARGEST_SEED = 2**32 - 1


def check_config(config: Config, where: str) -> None:
    """Refuse what cannot be used.

    Args:
        config: With fields of the right types.
        where: The file, which begins the message.

    Raises:
        ConfigError: If a number is out of range or two fields contradict each other.
    """
    for check in (
        _check_finite,
        _check_ranges,
        _check_model,
        _check_kind,
        _check_loss,
        _check_training,
        _check_source,
        _check_evaluation,
        _check_augmentation,
    ):
        for message in check(config):
            raise ConfigError(f"{where}: {message}")


def _check_finite(config: Config) -> Iterator[str]:
    names = tuple(flat(dataclasses.asdict(config)))
    for name, value in _numbers(config, names):
        if isinstance(value, float) and not math.isfinite(value):
            yield f"{name}: must be a finite number. Received: {value}"


def _check_ranges(config: Config) -> Iterator[str]:
    for name, value in _numbers(config, _POSITIVE):
        if value < 1:
            yield f"{name}: must be positive. Received: {value}"
    for name, value in _numbers(config, _NOT_NEGATIVE):
        if value < 0:
            yield f"{name}: must not be negative. Received: {value}"
    for name, value in _numbers(config, _FRACTIONS):
        if not 0 <= value <= 1:
            yield f"{name}: must lie in 0..1. Received: {value}"


def _numbers(config: Config, names: tuple[str, ...]) -> Iterator[tuple[str, Any]]:
    """Names and values, one pair for each entry of a list."""
    for name in names:
        value = operator.attrgetter(name)(config)
        yield from ((name, item) for item in (value if isinstance(value, tuple) else (value,)))


def _check_model(config: Config) -> Iterator[str]:
    if config.model.size_divisibility < -1:
        yield (
            "model.size_divisibility: must be a multiple to pad to, 0 for none, or -1 for the backbone's own. "
            f"Received: {config.model.size_divisibility}"
        )
    decoder = config.model.transformer_decoder
    if decoder.num_heads < 1 or decoder.hidden_dim % decoder.num_heads:
        yield (
            f"model.transformer_decoder.num_heads: must divide hidden_dim ({decoder.hidden_dim}). "
            f"Received: {decoder.num_heads}"
        )
    pixel_decoder = config.model.pixel_decoder
    if pixel_decoder.norm == "group" and pixel_decoder.conv_dim % _NORM_GROUPS:
        yield (
            f"model.pixel_decoder.conv_dim: must be a multiple of {_NORM_GROUPS}, the groups of norm group. "
            f"Received: {pixel_decoder.conv_dim}"
        )


def _check_kind(config: Config) -> Iterator[str]:
    """Whether model, loss, queries and metrics belong together."""
    model = config.model
    loss = "mask_classification" if model.name == "maskformer" else "per_pixel"
    if config.loss.name != loss:
        yield f"loss.name: must be {loss} for model.name {model.name}. Received: {config.loss.name!r}"
    is_fixed = model.name == "maskformer" and config.loss.matcher == "fixed"
    num_queries = model.transformer_decoder.num_queries
    if (is_fixed or model.name == "per_pixel_plus") and num_queries != model.num_classes:
        reason = "loss.matcher fixed" if is_fixed else "model.name per_pixel_plus"
        yield (
            f"model.transformer_decoder.num_queries: must equal model.num_classes ({model.num_classes}) with {reason}. "
            f"Received: {num_queries}"
        )
    others = [metric for metric in config.evaluation.metrics if metric in ("panoptic", "instance")]
    if loss == "per_pixel" and others:
        yield (
            f"evaluation.metrics: model.name {model.name} knows no segments and can be scored on semantic only. "
            f"Received: {', '.join(others)}"
        )


def _check_loss(config: Config) -> Iterator[str]:
    if config.loss.oversample_ratio < 1:
        yield f"loss.oversample_ratio: must be at least 1. Received: {config.loss.oversample_ratio}"


def _check_training(config: Config) -> Iterator[str]:
    parts, batch_size = config.training.accumulation_steps, config.data.batch_size
    if batch_size % parts:
        yield f"training.accumulation_steps: must divide data.batch_size ({batch_size}). Received: {parts}"
    if not 0 <= config.training.seed <= _LARGEST_SEED:
        yield f"training.seed: must lie in 0..{_LARGEST_SEED}. Received: {config.training.seed}"
    for name, value in _numbers(config, ("optimizer.ema", "optimizer.momentum")):
        if not 0 <= value < 1:
            yield f"{name}: must be at least 0 and below 1. Received: {value}"
    milestones = list(config.optimizer.schedule.milestones)
    if milestones != sorted(set(milestones)) or min(milestones, default=1) < 1:
        yield f"optimizer.schedule.milestones: must be increasing and at least 1. Received: {milestones}"


def _check_source(config: Config) -> Iterator[str]:
    source = config.data.source
    if source not in SOURCES and not source.startswith("tfds:"):
        yield f"data.source: {choice_error((*SOURCES, 'tfds:NAME'), source)}"


def _check_evaluation(config: Config) -> Iterator[str]:
    evaluation = config.evaluation
    averages = evaluation.augmentation.enabled and bool(evaluation.augmentation.shortest_edges)
    if not evaluation.metrics:
        yield "evaluation.metrics: must name what is measured, for example [semantic]. Received: []"
    if averages and ("semantic" not in evaluation.metrics or evaluation.inference != "default"):
        yield (
            "evaluation.augmentation: averages class scores, so evaluation.metrics must hold semantic and "
            f"evaluation.inference be default. Received: metrics {list(evaluation.metrics)}, inference "
            f"{evaluation.inference}"
        )
    if evaluation.tile_overlap == 1:
        yield "evaluation.tile_overlap: must be less than 1, or tiles would not move on. Received: 1"
    if evaluation.tile_size and ("instance" in evaluation.metrics or averages):
        yield (
            "evaluation.tile_size: tiles are put together for semantic and panoptic results of one view only. "
            f"Received: metrics {list(evaluation.metrics)}{', evaluation.augmentation' if averages else ''}"
        )
    if evaluation.best_metric and evaluation.best_metric.partition("/")[0] not in evaluation.metrics:
        yield (
            f"evaluation.best_metric: must belong to one of evaluation.metrics ({', '.join(evaluation.metrics)}). "
            f"Received: {evaluation.best_metric!r}"
        )


def _check_augmentation(config: Config) -> Iterator[str]:
    augmentation, prefix = config.data.augmentation, "data.augmentation"
    for name in ("crop", "scale_range", "jitter_range", "range_crop"):
        value = getattr(augmentation, name)
        if len(value) not in (0, 2):
            yield f"{prefix}.{name}: must have 2 entries or none. Received: {list(value)}"
        if name != "crop" and value and not 0 < value[0] <= value[1]:
            yield f"{prefix}.{name}: must be two increasing positive numbers. Received: {list(value)}"
    ways = [name for name in ("shortest_edges", "scale_range", "jitter_range") if getattr(augmentation, name)]
    if len(ways) > 1:
        yield f"{prefix}: {' and '.join(f'`{name}`' for name in ways)} both choose the size; set one of them"
    if augmentation.jitter_range and not augmentation.crop:
        yield f"{prefix}.jitter_range: needs `crop`, the size that images are fitted into first"
    if augmentation.quarter_turns and len(set(augmentation.crop)) > 1:
        yield (
            f"{prefix}.quarter_turns: needs a square `crop`, or turned images would not fit. "
            f"Received: {list(augmentation.crop)}"
        )
    shapes = config.data.batch_shapes
    if augmentation.quarter_turns and not all(any(h <= w2 and w <= h2 for h2, w2 in shapes) for h, w in shapes):
        yield (
            f"{prefix}.quarter_turns: needs `data.batch_shapes` that hold images turned too. "
            f"Received: {[list(shape) for shape in shapes]}"
        )
