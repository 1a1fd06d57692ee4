"""Configuration: YAML that is only data, read into frozen dataclasses which hold defaults, types and validation.

The module imports nothing of the package; `build.py` alone turns a configuration into objects.
"""

from __future__ import annotations

import dataclasses
import difflib
import re
import types
import typing
from pathlib import Path
from typing import Any, Literal

import yaml


@dataclasses.dataclass(frozen=True)
class BackboneConfig:
    """A backbone. `norm` and `frozen_stages` act on ResNets, all fields after them on Swin.

    `frozen_stages`: so many parts, from the stem on, are not trained. `qk_scale: 0` scales the products of queries and
    keys by 1 / sqrt(channels of a head). `pretrain_image_size` acts with `absolute_position_embedding` only.
    """

    name: Literal[
        "resnet18",
        "resnet34",
        "resnet50",
        "resnet101",
        "resnet101c",
        "swin_tiny",
        "swin_small",
        "swin_base",
        "swin_large",
    ] = "resnet50"
    norm: Literal["frozen", "batch"] = "frozen"
    frozen_stages: int = 0
    mlp_ratio: float = 4.0
    qkv_bias: bool = True
    qk_scale: float = 0.0
    drop_rate: float = 0.0
    attention_drop_rate: float = 0.0
    drop_path_rate: float = 0.3
    absolute_position_embedding: bool = False
    pretrain_image_size: int = 224
    patch_norm: bool = True


@dataclasses.dataclass(frozen=True)
class PixelDecoderConfig:
    """A pixel decoder. The last five fields act on `transformer_fpn`."""

    name: Literal["fpn", "transformer_fpn"] = "fpn"
    conv_dim: int = 256
    mask_dim: int = 256
    norm: Literal["group", "none"] = "group"
    encoder_layers: int = 6
    num_heads: int = 8
    feedforward_dim: int = 2048
    dropout: float = 0.1
    pre_norm: bool = False


@dataclasses.dataclass(frozen=True)
class TransformerDecoderConfig:
    """The transformer decoder and its queries."""

    num_queries: int = 100
    hidden_dim: int = 256
    num_heads: int = 8
    feedforward_dim: int = 2048
    dropout: float = 0.1
    encoder_layers: int = 0
    decoder_layers: int = 6
    pre_norm: bool = False
    in_feature: Literal["res2", "res3", "res4", "res5", "transformer_encoder"] = "res5"
    enforce_input_projection: bool = False


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """The network. `weights` is a file to start from, `precision` a Keras dtype policy.

    `name`: the paper's model or one of its per-pixel baselines, of which `per_pixel` has no transformer decoder and
    `per_pixel_plus` one query per class. The baselines are trained by `loss.name: per_pixel`.

    `size_divisibility`: images are padded to a multiple of it; 0 for none, -1 for what the backbone asks for (0 for
    ResNets, 32 for Swin).
    """

    name: Literal["maskformer", "per_pixel", "per_pixel_plus"] = "maskformer"
    num_classes: int = 150
    backbone: BackboneConfig = BackboneConfig()
    pixel_decoder: PixelDecoderConfig = PixelDecoderConfig()
    transformer_decoder: TransformerDecoderConfig = TransformerDecoderConfig()
    deep_supervision: bool = True
    size_divisibility: int = 32
    pixel_mean: tuple[float, float, float] = (123.675, 116.28, 103.53)
    pixel_std: tuple[float, float, float] = (58.395, 57.12, 57.375)
    weights: str = ""
    precision: Literal["float32", "mixed_float16", "mixed_bfloat16"] = "float32"


@dataclasses.dataclass(frozen=True)
class LossConfig:
    """Weights of the loss terms and of the matching cost, both over all decoder layers.

    `mask_stride`: the mask losses are taken at the targets' size divided by it, 1 as in the paper. `num_points`: or at
    so many sampled points per mask, to which the two fields after it belong; 0 for none. `ignore_void`: pixels of no
    segment are left out of the mask terms of loss and matching, where the paper takes them for background.

    `per_pixel` is the cross-entropy of every pixel: of the other fields, `cross_entropy_weight`, `deep_supervision` and
    `ce_normalization` act on it. `matcher: fixed` matches query i with class i, at no cost.
    """

    name: Literal["mask_classification", "per_pixel"] = "mask_classification"
    cross_entropy_weight: float = 1.0
    mask_weight: float = 20.0
    dice_weight: float = 1.0
    no_object_weight: float = 0.1
    matcher: Literal["in_graph", "scipy", "fixed"] = "in_graph"
    cost_class: float = 1.0
    cost_mask: float = 20.0
    cost_dice: float = 1.0
    deep_supervision: bool = True
    ce_normalization: Literal["global", "per_replica"] = "global"
    mask_stride: int = 1
    num_points: int = 0
    oversample_ratio: float = 3.0
    importance_ratio: float = 0.75
    ignore_void: bool = False


@dataclasses.dataclass(frozen=True)
class ScheduleConfig:
    """Learning rate over time. `total_steps: 0` takes the number of training steps."""

    name: Literal["poly", "multistep", "constant"] = "poly"
    total_steps: int = 0
    power: float = 0.9
    milestones: tuple[int, ...] = ()
    gamma: float = 0.1
    warmup_steps: int = 0
    warmup_factor: float = 1.0


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """AdamW or SGD with the reference's parameter groups. `clip_norm: 0` turns clipping off."""

    name: Literal["adamw", "sgd"] = "adamw"
    learning_rate: float = 1.0e-4
    weight_decay: float = 1.0e-4
    backbone_multiplier: float = 0.1
    clip_norm: float = 0.01
    momentum: float = 0.9
    schedule: ScheduleConfig = ScheduleConfig()


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


@dataclasses.dataclass(frozen=True)
class SplitConfig:
    """Where a split lies, relative to `data.root`.

    `images`: glob pattern or folder (folders), folder (COCO, Cityscapes) or name of a split (TensorFlow Datasets).
    `labels`: pattern with `{stem}` or folder (folders), or folder (COCO panoptic, Cityscapes). `annotations`: panoptic
    or instance JSON (COCO). `examples`: a Python function that returns them, `"module:function"`; see
    `data.sources.from_examples`. `count`, `seed`: number and seed of generated scenes. `limit`: use the first so many
    images only; 0 for all.
    """

    images: str = ""
    labels: str = ""
    annotations: str = ""
    examples: str = ""
    count: int = 0
    seed: int = 0
    limit: int = 0


@dataclasses.dataclass(frozen=True)
class AugmentationConfig:
    """Training transforms; `data.augmentation.transform_chain` describes the fields and their order.

    `map_resize`: which pixel a resized label map takes, `floor` (published semantic recipes) or `center` (panoptic).
    `drop_empty_segments: false` keeps segments that a crop removed as empty masks with a class, as the reference's
    panoptic recipes do.
    """

    shortest_edges: tuple[int, ...] = ()
    longest_edge: int = 2048
    scale_range: tuple[float, ...] = ()
    stretch: float = 0.0
    jitter_range: tuple[float, ...] = ()
    crop: tuple[int, ...] = ()
    largest_class: float = 1.0
    range_crop: tuple[int, ...] = ()
    range_crop_edges: tuple[int, ...] = (400, 500, 600)
    range_crop_probability: float = 0.5
    horizontal_flip: bool = True
    vertical_flip: bool = False
    quarter_turns: bool = False
    color: bool = False
    map_resize: Literal["floor", "center"] = "floor"
    drop_empty_segments: bool = True


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """A dataset and the pipeline over it.

    `source`: one of `SOURCES`, or `tfds:NAME` for a dataset of TensorFlow Datasets.
    `classes`: file (JSON or CSV) under `root`, or a published label space such as `ade20k_150`. `class_names` and
    `thing_names`: given here instead.
    `background`: class of the pixels outside all instances (instance folders). `class_divisor`: an instance id is
    class * divisor + number, where it is not 0. `test_shortest_edge: 0` evaluates images at their own size.
    `batch_shapes`: sizes to pad training batches to, where there is no crop. `cache`: decoded samples stay in memory,
    `cache_folder`: in this folder. `reduced_decoding`: JPEG files of twice the largest of
    `augmentation.shortest_edges` or more are decoded at a half, a quarter or an eighth of their size (folders only).
    `on_error: skip` goes on where a sample cannot be read, and lists it at the end.
    """

    source: str = "shapes"
    root: str = "."
    classes: str = ""
    class_names: tuple[str, ...] = ()
    thing_names: tuple[str, ...] = ()
    ignore_value: int = -1
    background: str = ""
    class_divisor: int = 0
    image_size: tuple[int, int] = (128, 128)
    train: SplitConfig = SplitConfig()
    val: SplitConfig = SplitConfig()
    augmentation: AugmentationConfig = AugmentationConfig()
    test_shortest_edge: int = 0
    test_longest_edge: int = 2048
    batch_size: int = 16
    test_batch_size: int = 1
    max_segments: int = 0
    batch_shapes: tuple[tuple[int, int], ...] = ()
    cache: bool = False
    cache_folder: str = ""
    reduced_decoding: bool = False
    on_error: Literal["raise", "skip"] = "raise"
    seed: int = 0
    workers: int = 2


@dataclasses.dataclass(frozen=True)
class TrainingConfig:
    """Length and rhythm of a run, in optimisation steps."""

    steps: int = 160000
    evaluate_every: int = 5000
    checkpoint_every: int = 5000
    log_every: int = 20
    seed: int = 0
    jit_compile: bool = False
    deterministic: bool = False


@dataclasses.dataclass(frozen=True)
class ViewsConfig:
    """Sizes and mirror images whose class scores are averaged, after the evaluation without; none if there is no edge.

    `enabled: false` keeps the published sizes of a recipe for those who ask for them; they cost many times the rest.
    `resize_twice`: views are made from the picture as resized for testing, as in the published figures, instead of
    from the picture itself. `longest_edge: 0` sets no bound.
    """

    enabled: bool = True
    shortest_edges: tuple[int, ...] = ()
    longest_edge: int = 0
    flip: bool = True
    resize_twice: bool = True


@dataclasses.dataclass(frozen=True)
class EvaluationConfig:
    """What is measured, and how pairs become maps.

    `before_inference`: restore mask logits to the image's size before the semantic inference instead of the class
    scores after it.
    """

    metrics: tuple[
        Literal["semantic", "panoptic", "instance", "semantic_boundary", "panoptic_stuff", "cityscapes"], ...
    ] = ("semantic",)
    inference: Literal["default", "general"] = "default"
    object_mask_threshold: float = 0.8
    overlap_threshold: float = 0.8
    score_threshold: float = 0.5
    before_inference: bool = False
    best_metric: str = ""
    augmentation: ViewsConfig = ViewsConfig()


@dataclasses.dataclass(frozen=True)
class Config:
    """A whole experiment."""

    model: ModelConfig = ModelConfig()
    loss: LossConfig = LossConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    data: DataConfig = DataConfig()
    training: TrainingConfig = TrainingConfig()
    evaluation: EvaluationConfig = EvaluationConfig()


_EXPONENT = re.compile(r"[-+]?\d+e[-+]?\d+", re.IGNORECASE)


class ConfigError(ValueError):
    """A configuration that cannot be used; the message names file, field and remedy."""


def load_config(path: str | Path, overrides: typing.Sequence[str] = ()) -> Config:
    """Read a configuration file.

    Args:
        path: YAML file. A top-level `base: other.yaml` names a file beside it whose values it overrides; a base may
            not have a base.
        overrides: `"section.field=value"` strings, values in YAML syntax; they win over the file.

    Returns:
        The configuration, complete and checked.

    Raises:
        ConfigError: If a file is missing or not YAML, a field is unknown or a value has the wrong type.
    """
    path = Path(path)
    values = _read_yaml(path)
    base = values.pop("base", None)
    if base is not None:
        if not isinstance(base, str):
            raise ConfigError(f"{path}: base: must be the name of a file beside it. Received: {base!r}")
        base_values = _read_yaml(path.parent / base)
        if "base" in base_values:
            raise ConfigError(
                f"{path.parent / base}: a base may not have a `base` itself; received {base_values['base']!r}"
            )
        # Each file is checked on its own, so that an error names the file that it is in.
        _build(Config, base_values, str(path.parent / base), "")
        _build(Config, values, str(path), "")
        values = _merge(base_values, values)
    where = str(path)
    _build(Config, values, where, "")
    for override in overrides:
        values = _merge(values, _parse_override(override))
        where = f"{path} with {override}"
        _build(Config, values, where, "")
    return config_from_dict(values, where)


def config_to_dict(config: Any) -> dict[str, Any]:
    """Plain containers, ready for YAML or JSON; `config_from_dict` reads them back."""
    return _plain(dataclasses.asdict(config))


def config_from_dict(values: dict[str, Any], where: str = "config") -> Config:
    """The configuration that `config_to_dict` wrote; `where` stands in error messages."""
    config = _build(Config, values, where, "")
    _validate(config, where)
    return _fill_in(config)


def save_config(config: Config, path: str | Path) -> None:
    """Write every field, defaults included, as YAML that `load_config` reads."""
    Path(path).write_text(yaml.safe_dump(config_to_dict(config), sort_keys=False), encoding="utf-8")


class _UniqueKeyLoader(yaml.SafeLoader):
    """SafeLoader that refuses a key given twice, which YAML would silently let win."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        repeated = sorted({str(key) for key in keys if keys.count(key) > 1})
        if repeated:
            raise yaml.constructor.ConstructorError(
                None, None, f"the key {repeated[0]!r} is given twice", node.start_mark
            )
        return super().construct_mapping(node, deep)


def _read_yaml(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise ConfigError(f"{path}: no such configuration file")
    try:
        values = yaml.load(path.read_text(encoding="utf-8"), Loader=_UniqueKeyLoader)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not valid YAML: {error}") from error
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: must hold a mapping of sections. Received: {type(values).__name__}")
    return values


def _parse_override(override: str) -> dict[str, Any]:
    name, equals, text = override.partition("=")
    if not equals or not name.strip():
        raise ConfigError(f'An override must look like "data.root=/data/coco". Received: {override!r}')
    try:
        value = yaml.safe_load(text) if text.strip() else ""
    except yaml.YAMLError as error:
        raise ConfigError(f"The value of the override {override!r} is not valid YAML: {error}") from error
    for part in reversed(name.strip().split(".")):
        value = {part: value}
    return value


def _merge(base: dict[str, Any], values: dict[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in values.items():
        both = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = _merge(merged[key], value) if both else value
    return merged


def _build(cls: type, values: Any, where: str, prefix: str) -> Any:
    if not isinstance(values, dict):
        raise ConfigError(f"{where}: {prefix.rstrip('.')}: must be a mapping of fields. Received: {values!r}")
    hints = typing.get_type_hints(cls)
    names = [field.name for field in dataclasses.fields(cls)]
    for key in values:
        if key not in names:
            close = difflib.get_close_matches(str(key), names, n=1)
            hint = f"Did you mean {close[0]}?" if close else f"Known fields: {', '.join(names)}"
            raise ConfigError(f"{where}: {prefix}{key}: unknown field. {hint}")
    return cls(**{key: _convert(hints[key], value, where, f"{prefix}{key}") for key, value in values.items()})


def _convert(hint: Any, value: Any, where: str, name: str) -> Any:
    if dataclasses.is_dataclass(hint):
        return _build(hint, value, where, f"{name}.")
    origin = typing.get_origin(hint)
    if origin is Literal:
        return _convert_choice(typing.get_args(hint), value, where, name)
    if origin is tuple:
        return _convert_tuple(typing.get_args(hint), value, where, name)
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if isinstance(value, hint) and not (hint is int and isinstance(value, bool)):
        return value
    if hint is float and isinstance(value, str) and _EXPONENT.fullmatch(value):
        return float(value)  # YAML reads 1e-4 as text, as its numbers need a dot
    raise ConfigError(f"{where}: {name}: must be {_describe(hint)}. Received: {value!r}")


def _convert_choice(choices: tuple[Any, ...], value: Any, where: str, name: str) -> Any:
    if value in choices:
        return value
    close = difflib.get_close_matches(str(value), [str(choice) for choice in choices], n=1)
    hint = f" Did you mean {close[0]}?" if close else ""
    raise ConfigError(f"{where}: {name}: must be one of {', '.join(map(str, choices))}. Received: {value!r}.{hint}")


def _convert_tuple(hints: tuple[Any, ...], value: Any, where: str, name: str) -> tuple:
    if not isinstance(value, list | tuple):
        raise ConfigError(f"{where}: {name}: must be a list. Received: {value!r}")
    if hints[-1] is Ellipsis:
        return tuple(_convert(hints[0], item, where, f"{name}[{i}]") for i, item in enumerate(value))
    if len(value) != len(hints):
        raise ConfigError(f"{where}: {name}: must have {len(hints)} entries. Received: {value!r}")
    return tuple(
        _convert(hint, item, where, f"{name}[{i}]") for i, (hint, item) in enumerate(zip(hints, value, strict=True))
    )


def _describe(hint: Any) -> str:
    names = {int: "an integer", float: "a number", bool: "true or false", str: "text"}
    return names.get(hint, str(hint) if isinstance(hint, types.GenericAlias) else getattr(hint, "__name__", str(hint)))


def _validate(config: Config, where: str) -> None:
    """Checks that need more than a type, each with the field's name."""
    positive = {
        "model.num_classes": config.model.num_classes,
        "model.transformer_decoder.num_queries": config.model.transformer_decoder.num_queries,
        "model.transformer_decoder.decoder_layers": config.model.transformer_decoder.decoder_layers,
        "data.batch_size": config.data.batch_size,
        "data.test_batch_size": config.data.test_batch_size,
        "data.workers": config.data.workers,
        "loss.mask_stride": config.loss.mask_stride,
        "training.steps": config.training.steps,
        "training.log_every": config.training.log_every,
        "data.augmentation.crop": min(config.data.augmentation.crop, default=1),
        "evaluation.augmentation.shortest_edges": min(config.evaluation.augmentation.shortest_edges, default=1),
        "data.augmentation.shortest_edges": min(config.data.augmentation.shortest_edges, default=1),
    }
    for name, value in positive.items():
        if value < 1:
            raise ConfigError(f"{where}: {name}: must be positive. Received: {value}")
    not_negative = {
        "optimizer.learning_rate": config.optimizer.learning_rate,
        "optimizer.weight_decay": config.optimizer.weight_decay,
        "optimizer.clip_norm": config.optimizer.clip_norm,
        "optimizer.schedule.warmup_steps": config.optimizer.schedule.warmup_steps,
        "loss.no_object_weight": config.loss.no_object_weight,
        "data.train.limit": config.data.train.limit,
        "data.train.count": config.data.train.count,
        "data.val.limit": config.data.val.limit,
        "data.val.count": config.data.val.count,
        "data.max_segments": config.data.max_segments,
        "data.test_shortest_edge": config.data.test_shortest_edge,
        "evaluation.augmentation.longest_edge": config.evaluation.augmentation.longest_edge,
        "training.evaluate_every": config.training.evaluate_every,
        "training.checkpoint_every": config.training.checkpoint_every,
    }
    for name, value in not_negative.items():
        if not value >= 0:
            raise ConfigError(f"{where}: {name}: must not be negative. Received: {value}")
    if config.model.size_divisibility < -1:
        raise ConfigError(
            f"{where}: model.size_divisibility: must be a multiple to pad to, 0 for none, or -1 for the backbone's "
            f"own. Received: {config.model.size_divisibility}"
        )
    _validate_kind(config, where)
    if not config.data.source.startswith("tfds:"):
        _convert_choice((*SOURCES, "tfds:NAME"), config.data.source, where, "data.source")
    evaluation = config.evaluation
    for name in ("object_mask_threshold", "overlap_threshold", "score_threshold"):
        value = getattr(evaluation, name)
        if not 0 <= value <= 1:
            raise ConfigError(f"{where}: evaluation.{name}: must lie in 0..1. Received: {value}")
    if evaluation.augmentation.shortest_edges and (
        "semantic" not in evaluation.metrics or evaluation.inference != "default"
    ):
        raise ConfigError(
            f"{where}: evaluation.augmentation: averages class scores, so evaluation.metrics must hold semantic and "
            f"evaluation.inference be default. Received: metrics {list(evaluation.metrics)}, inference "
            f"{evaluation.inference}"
        )
    if evaluation.best_metric and evaluation.best_metric.partition("/")[0] not in evaluation.metrics:
        raise ConfigError(
            f"{where}: evaluation.best_metric: must belong to one of evaluation.metrics "
            f"({', '.join(evaluation.metrics)}). Received: {evaluation.best_metric!r}"
        )
    decoder = config.model.transformer_decoder
    if decoder.num_heads < 1 or decoder.hidden_dim % decoder.num_heads:
        raise ConfigError(
            f"{where}: model.transformer_decoder.num_heads: must divide hidden_dim ({decoder.hidden_dim}). "
            f"Received: {decoder.num_heads}"
        )
    _validate_augmentation(config.data.augmentation, f"{where}: data.augmentation")


def _validate_augmentation(augmentation: AugmentationConfig, where: str) -> None:
    for name in ("crop", "scale_range", "jitter_range", "range_crop"):
        value = getattr(augmentation, name)
        if len(value) not in (0, 2):
            raise ConfigError(f"{where}.{name}: must have 2 entries or none. Received: {list(value)}")
        if name != "crop" and value and not 0 < value[0] <= value[1]:
            raise ConfigError(f"{where}.{name}: must be two increasing positive numbers. Received: {list(value)}")
    for name in ("largest_class", "range_crop_probability"):
        if not 0 <= getattr(augmentation, name) <= 1:
            raise ConfigError(f"{where}.{name}: must lie in 0..1. Received: {getattr(augmentation, name)}")
    ways = [name for name in ("shortest_edges", "scale_range", "jitter_range") if getattr(augmentation, name)]
    if len(ways) > 1:
        raise ConfigError(
            f"{where}: {' and '.join(f'`{name}`' for name in ways)} both choose the size; set one of them"
        )
    if augmentation.jitter_range and not augmentation.crop:
        raise ConfigError(f"{where}.jitter_range: needs `crop`, the size that images are fitted into first")


def _validate_kind(config: Config, where: str) -> None:
    """Whether model, loss, queries and metrics belong together."""
    model = config.model
    loss = "mask_classification" if model.name == "maskformer" else "per_pixel"
    if config.loss.name != loss:
        raise ConfigError(
            f"{where}: loss.name: must be {loss} for model.name {model.name}. Received: {config.loss.name!r}"
        )
    is_fixed = model.name == "maskformer" and config.loss.matcher == "fixed"
    num_queries = model.transformer_decoder.num_queries
    if (is_fixed or model.name == "per_pixel_plus") and num_queries != model.num_classes:
        reason = "loss.matcher fixed" if is_fixed else "model.name per_pixel_plus"
        raise ConfigError(
            f"{where}: model.transformer_decoder.num_queries: must equal model.num_classes ({model.num_classes}) with "
            f"{reason}. Received: {num_queries}"
        )
    others = [metric for metric in config.evaluation.metrics if metric in ("panoptic", "instance")]
    if loss == "per_pixel" and others:
        raise ConfigError(
            f"{where}: evaluation.metrics: model.name {model.name} knows no segments and can be scored on semantic "
            f"only. Received: {', '.join(others)}"
        )


_BEST_METRICS = {
    "semantic": "semantic/mIoU",
    "panoptic": "panoptic/PQ",
    "instance": "instance/AP",
    "semantic_boundary": "semantic_boundary/mIoU",
    "panoptic_stuff": "panoptic_stuff/PQ",
    "cityscapes": "cityscapes/IoU",
}


def _fill_in(config: Config) -> Config:
    """The values whose default depends on another section."""
    optimizer, evaluation = config.optimizer, config.evaluation
    if optimizer.schedule.total_steps == 0:
        schedule = dataclasses.replace(optimizer.schedule, total_steps=config.training.steps)
        optimizer = dataclasses.replace(optimizer, schedule=schedule)
    if not evaluation.best_metric and evaluation.metrics:
        best = _BEST_METRICS[evaluation.metrics[0]]
        evaluation = dataclasses.replace(evaluation, best_metric=best)
    return dataclasses.replace(config, optimizer=optimizer, evaluation=evaluation)


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value
