"""Configurations of the per-pixel baselines and of fixed matching: what they build, and what is refused."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from kmaskformer.build import build_criterion, build_evaluators, build_model
from kmaskformer.config import (
    BackboneConfig,
    Config,
    ConfigError,
    LossConfig,
    ModelConfig,
    PixelDecoderConfig,
    TransformerDecoderConfig,
    config_from_dict,
    config_to_dict,
    load_config,
)
from kmaskformer.losses.matcher import FixedMatcher
from kmaskformer.losses.per_pixel_criterion import PerPixelCriterion
from kmaskformer.models.per_pixel import PerPixelBaseline, PerPixelBaselinePlus

BACKBONE, PIXEL_DECODER = 23_454_912, 7_540_480
PUBLISHED = (
    ("per_pixel", 150, 31_033_942),
    ("per_pixel_plus", 150, 41_228_736),
    # From the same parts: 257 for each class of the classifier, 256 for each query.
    ("per_pixel", 171, 31_033_942 + 257 * 21),
    ("per_pixel_plus", 847, 41_228_736 + 256 * 697),
)
CLASSES = {"per_pixel": PerPixelBaseline, "per_pixel_plus": PerPixelBaselinePlus}


def count(variables):
    return sum(int(np.prod(variable.shape)) for variable in variables)


@pytest.mark.parametrize(("name", "num_classes", "total"), PUBLISHED)
def test_parameter_counts(without_values, name, num_classes, total):
    decoder = TransformerDecoderConfig(num_queries=num_classes)
    config = ModelConfig(name=name, num_classes=num_classes, transformer_decoder=decoder)
    model = without_values(build_model, config)
    assert type(model) is CLASSES[name] and model.name == name
    assert count(model.backbone.trainable_variables) == BACKBONE
    assert count(model.pixel_decoder.trainable_variables) == PIXEL_DECODER
    assert count(model.trainable_variables) == total


@pytest.mark.parametrize("name", ["per_pixel", "per_pixel_plus"])
def test_the_published_recipe(repository, without_values, name):
    """The zoo's baseline on ADE20K: its own model, and all else that of MaskFormer with the same backbone."""
    folder = repository / "configs/ade20k/semantic"
    config, other = (load_config(folder / f"{model}_resnet50.yaml") for model in (name, "maskformer"))
    assert (config.data, config.optimizer, config.training) == (other.data, other.optimizer, other.training)
    model = without_values(build_model, config.model)
    assert type(model) is CLASSES[name] and model.preprocessing.size_divisibility == 0
    assert count(model.trainable_variables) == {row[0]: row[2] for row in PUBLISHED[:2]}[name]
    assert isinstance(build_criterion(config.loss), PerPixelCriterion)
    assert [evaluator.name for evaluator in build_evaluators(config.evaluation)] == ["semantic"]


@pytest.mark.parametrize("name", ["per_pixel", "per_pixel_plus"])
@pytest.mark.parametrize("dataset", ["camvid", "dubai_aerial"])
def test_the_experiments_baselines_differ_in_model_and_loss_only(repository, dataset, name):
    folder = repository / "configs" / dataset / "semantic"
    config, other = (load_config(folder / f"{model}_resnet18.yaml") for model in (name, "maskformer"))
    for section in ("data", "optimizer", "training", "evaluation"):
        assert getattr(config, section) == getattr(other, section), section
    decoder = dataclasses.replace(other.model.transformer_decoder, num_queries=other.model.num_classes)
    if name == "per_pixel":
        decoder = TransformerDecoderConfig()  # not used
    assert config.model == dataclasses.replace(other.model, name=name, transformer_decoder=decoder)


@pytest.mark.parametrize("name", ["per_pixel", "per_pixel_plus"])
def test_every_option_arrives(without_values, name):
    config = ModelConfig(
        name=name,
        num_classes=5,
        backbone=BackboneConfig("resnet18", norm="batch"),
        pixel_decoder=PixelDecoderConfig("transformer_fpn", 64, 24, "none", 1, 4, 40, 0.2, True),
        transformer_decoder=TransformerDecoderConfig(5, 32, 2, 48, 0.3, 1, 3, True, "transformer_encoder", True),
        deep_supervision=False,
        size_divisibility=64,
        pixel_mean=(1.0, 2.0, 3.0),
        precision="mixed_bfloat16",
    )
    model = without_values(build_model, config)
    values = model.get_config()
    assert (values["num_classes"], values["size_divisibility"], values["pixel_mean"]) == (5, 64, [1.0, 2.0, 3.0])
    assert model.backbone.norm == "batch" and model.pixel_decoder.mask_dim == 24
    parts = [model.backbone, model.pixel_decoder]
    if name == "per_pixel_plus":
        assert values["deep_supervision"] is False
        for field in dataclasses.fields(config.transformer_decoder):
            expected = getattr(config.transformer_decoder, field.name)
            assert model.transformer_decoder.get_config()[field.name] == expected, field.name
        parts += [model.transformer_decoder, model.mask_head]
    else:
        parts += [model.classifier]
    assert {part.dtype_policy.name for part in (model, *parts)} == {"mixed_bfloat16"}


def test_loss():
    options = {"deep_supervision": False, "ce_normalization": "per_replica"}
    config = LossConfig(name="per_pixel", cross_entropy_weight=0.5, **options)
    assert build_criterion(config).get_config() == {
        "num_classes": None,
        "weight": 0.5,
        "deep_supervision": False,
        "ce_normalization": "per_replica",
    }


def test_fixed_matching():
    assert isinstance(build_criterion(LossConfig(matcher="fixed")).matcher, FixedMatcher)
    fixed = {"model": {"num_classes": 7, "transformer_decoder": {"num_queries": 7}}, "loss": {"matcher": "fixed"}}
    assert config_from_dict(fixed).loss.matcher == "fixed"


def changed(**sections):
    values = config_to_dict(Config())
    for section, fields in sections.items():
        values[section].update(fields)
    return values


PER_PIXEL = {"model": {"name": "per_pixel"}, "loss": {"name": "per_pixel"}}
REFUSED = {
    r"loss.name: must be per_pixel for model.name per_pixel. Received: 'mask_classification'": changed(
        model={"name": "per_pixel"}
    ),
    r"loss.name: must be mask_classification for model.name maskformer. Received: 'per_pixel'": changed(
        loss={"name": "per_pixel"}
    ),
    r"num_queries: must equal model.num_classes \(150\) with model.name per_pixel_plus. Received: 100": changed(
        model={"name": "per_pixel_plus"}, loss={"name": "per_pixel"}
    ),
    r"num_queries: must equal model.num_classes \(150\) with loss.matcher fixed. Received: 100": changed(
        loss={"matcher": "fixed"}
    ),
    r"metrics: model.name per_pixel knows no segments and can be scored on semantic only. Received: panoptic": changed(
        **PER_PIXEL, evaluation={"metrics": ["semantic", "panoptic"]}
    ),
    r"model.name: must be one of maskformer, per_pixel, per_pixel_plus. Received: 'per_pixl'.": changed(
        model={"name": "per_pixl"}
    ),
}


@pytest.mark.parametrize("message", REFUSED)
def test_what_does_not_belong_together_is_refused(message):
    with pytest.raises(ConfigError, match=message):
        config_from_dict(REFUSED[message])
