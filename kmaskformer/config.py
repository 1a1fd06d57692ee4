"""Configuration: YAML that is only data, read into frozen dataclasses which hold defaults, types and validation.

`strict_yaml.py` reads, `config_checks.py` checks what needs more than a type; `build.py` and `build_data.py` turn a
configuration into objects.
"""

from __future__ import annotations

import dataclasses
import typing
from pathlib import Path
from typing import Any, Literal

import yaml

from kmaskformer.config_checks import SOURCES as SOURCES
from kmaskformer.config_checks import check_config
from kmaskformer.strict_yaml import ConfigError as ConfigError
from kmaskformer.strict_yaml import flat, read_values, to_dataclass, to_plain


@dataclasses.dataclass(frozen=True)
class BackboneConfig:
    """A backbone. `norm`, `frozen_stages` and `channels` act on ResNets, `mlp_ratio` to `patch_norm` on Swin.

    `frozen_stages`: so many parts, from the stem on, are not trained. `channels`: of the four stages, where they are
    not the published network's; the stem has as many as the first. `coordinate_frequencies`: number of frequencies in
    which the coordinates of pixels are appended to every feature map; 0, as in the paper, for none. `qk_scale: 0`
    scales the products of queries and keys by 1 / sqrt(channels of a head). `pretrain_image_size` acts with
    `absolute_position_embedding` only. `recompute`: blocks are computed again in the backward pass, for less memory
    and about a third more time; ResNets need `norm: frozen` for it and Swin no dropout, else take a smaller batch or
    more `training.accumulation_steps`. `weights`: a file of a published image classifier, or of the reference's or
    Hugging Face's MaskFormer, to take the backbone's weights from, see `load_backbone_weights`; read unless the whole
    model's `weights` are given.
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
    channels: tuple[int, ...] = ()
    coordinate_frequencies: int = 0
    mlp_ratio: float = 4.0
    qkv_bias: bool = True
    qk_scale: float = 0.0
    drop_rate: float = 0.0
    attention_drop_rate: float = 0.0
    drop_path_rate: float = 0.3
    absolute_position_embedding: bool = False
    pretrain_image_size: int = 224
    patch_norm: bool = True
    recompute: bool = False
    weights: str = ""


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
    """The network. `weights` is a file of this package to start from, `precision` a Keras dtype policy.

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
    """AdamW or SGD with the reference's parameter groups. `clip_norm: 0` turns clipping off.

    `ema`: momentum of a running average of the weights, which is then what is evaluated and saved; 0 for none.
    """

    name: Literal["adamw", "sgd"] = "adamw"
    learning_rate: float = 1.0e-4
    weight_decay: float = 1.0e-4
    backbone_multiplier: float = 0.1
    clip_norm: float = 0.01
    momentum: float = 0.9
    ema: float = 0.0
    schedule: ScheduleConfig = ScheduleConfig()


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
    `generated_classes`: so many classes in generated scenes, 0 for the ten named ones. `merge_instances`: the segments
    of a class become one, for semantic segmentation with data that has instances.
    `background`: class of the pixels outside all instances (instance folders). `class_divisor`: an instance id is
    class * divisor + number, where it is not 0. `test_shortest_edge: 0` evaluates images at their own size.
    `batch_shapes`: sizes to pad training batches to, where there is no crop. `aspect_ratio_grouping`: batches of wide
    or of tall images, as far as possible, where there is no crop (COCO's files). `cache`: decoded samples stay in
    memory, `cache_folder`: in this folder. `reduced_decoding`: JPEG files of twice the largest of
    `augmentation.shortest_edges` or more are decoded at a half, a quarter or an eighth of their size (folders only).
    `on_error: skip` goes on where a sample cannot be read, and lists it at the end.
    `service`: `grpc://host:port` of a tf.data service whose workers (`scripts/data_service.py`) prepare the training
    data; empty to do it here.
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
    generated_classes: int = 0
    merge_instances: bool = False
    train: SplitConfig = SplitConfig()
    val: SplitConfig = SplitConfig()
    augmentation: AugmentationConfig = AugmentationConfig()
    test_shortest_edge: int = 0
    test_longest_edge: int = 2048
    batch_size: int = 16
    test_batch_size: int = 1
    max_segments: int = 0
    batch_shapes: tuple[tuple[int, int], ...] = ()
    aspect_ratio_grouping: bool = False
    cache: bool = False
    cache_folder: str = ""
    reduced_decoding: bool = False
    on_error: Literal["raise", "skip"] = "raise"
    seed: int = 0
    workers: int = 2
    service: str = ""


@dataclasses.dataclass(frozen=True)
class TrainingConfig:
    """Length and rhythm of a run, in optimisation steps.

    `accumulation_steps`: each batch is worked off in so many parts, for the memory of a part and the same gradient.
    """

    steps: int = 160000
    evaluate_every: int = 5000
    checkpoint_every: int = 5000
    log_every: int = 20
    seed: int = 0
    jit_compile: bool = False
    deterministic: bool = False
    accumulation_steps: int = 1


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
    `tile_size`: side of the tiles in which the resized image is seen by the model, one by one, and `tile_overlap` the
    part of it that neighbours share; 0 shows the model whole images.
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
    tile_size: int = 0
    tile_overlap: float = 0.5
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


_BEST_METRICS = {
    "semantic": "semantic/mIoU",
    "panoptic": "panoptic/PQ",
    "instance": "instance/AP",
    "semantic_boundary": "semantic_boundary/mIoU",
    "panoptic_stuff": "panoptic_stuff/PQ",
    "cityscapes": "cityscapes/IoU",
}


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
    return config_from_dict(*read_values(Config, Path(path), overrides))


def config_to_dict(config: Any) -> dict[str, Any]:
    """Plain containers, ready for YAML or JSON; `config_from_dict` reads them back."""
    return to_plain(dataclasses.asdict(config))


def config_from_dict(values: dict[str, Any], where: str = "config") -> Config:
    """The configuration that `config_to_dict` wrote; `where` stands in error messages."""
    config = to_dataclass(Config, values, where)
    check_config(config, where)
    return _fill_in(config)


def save_config(config: Config, path: str | Path) -> None:
    """Write every field, defaults included, as YAML that `load_config` reads."""
    Path(path).write_text(yaml.safe_dump(config_to_dict(config), sort_keys=False), encoding="utf-8")


def differences(before: Config, now: Config) -> list[str]:
    """The fields in which two configurations differ, as text with both values; none if they are equal."""
    fields, others = flat(config_to_dict(before)), flat(config_to_dict(now))
    pairs = {name: (value, others[name]) for name, value in fields.items() if value != others[name]}
    return [f"{name} was {value!r} and is now {other!r}" for name, (value, other) in pairs.items()]


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
