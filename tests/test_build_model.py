"""Models from configurations."""

from __future__ import annotations

import dataclasses
import pickle

import numpy as np
import pytest

from kmaskformer.build import OWN_FIELDS, build_model, load_weights
from kmaskformer.checkpoints.backbone_names import find_backbone_map
from kmaskformer.checkpoints.loading import named_weights
from kmaskformer.config import BackboneConfig, ModelConfig, PixelDecoderConfig, TransformerDecoderConfig
from kmaskformer.structures import DatasetInfo

BACKBONES = {
    "resnet50": 23_454_912,
    "resnet101": 42_394_816,
    "resnet101c": 42_518_208,
    "swin_tiny": 27_520_698,
    "swin_small": 48_838_602,
    "swin_base": 86_880_376,
    "swin_large": 195_201_204,
}
FROZEN_AFFINE = {"resnet50": 53_120, "resnet101": 105_344, "resnet101c": 105_728}
FPN, PREDICTOR = 7_540_480, 10_259_351
# Backbone, encoder layers of the pixel decoder, classes; pixel decoder, predictor and all parameters (None: the table
# of the published counts gives the sum only).
PUBLISHED = (
    ("resnet50", 0, 150, FPN, PREDICTOR, 41_254_743),
    ("resnet101", 0, 150, FPN, PREDICTOR, 60_194_647),
    ("resnet101c", 0, 150, FPN, PREDICTOR, 60_318_039),
    ("resnet50", 6, 133, 11_826_688, 9_730_438, 45_012_038),
    ("resnet101", 6, 133, 11_826_688, 9_730_438, 63_951_942),
    ("resnet50", 6, 150, 11_826_688, 9_734_807, 45_016_407),
    ("resnet101", 6, 150, 11_826_688, 9_734_807, 63_956_311),
    ("swin_tiny", 0, 150, 4_304_640, 9_931_671, 41_757_009),
    ("swin_small", 0, 150, 4_304_640, 9_931_671, 63_074_913),
    ("swin_base", 0, 150, 4_951_808, 9_997_207, 101_829_391),
    ("swin_large", 0, 150, 6_246_144, 10_128_279, 211_575_627),
    ("swin_tiny", 0, 133, 4_304_640, None, 41_752_640),
    ("swin_small", 0, 133, 4_304_640, None, 63_070_544),
    ("swin_base", 0, 133, 4_951_808, None, 101_825_022),
    ("swin_large", 0, 133, 6_246_144, None, 211_571_258),
    ("resnet50", 0, 171, FPN, None, 41_260_140),
    ("resnet50", 0, 847, FPN, None, 41_433_872),
    ("resnet50", 0, 65, FPN, None, 41_232_898),
    ("resnet50", 0, 19, FPN, None, 41_221_076),
)
TINY = ModelConfig(
    num_classes=3,
    backbone=BackboneConfig("resnet18"),
    pixel_decoder=PixelDecoderConfig(conv_dim=32, mask_dim=16),
    transformer_decoder=TransformerDecoderConfig(
        num_queries=4, hidden_dim=16, num_heads=2, feedforward_dim=24, decoder_layers=2
    ),
)


def count(variables):
    return sum(int(np.prod(variable.shape)) for variable in variables)


@pytest.mark.parametrize(("backbone", "encoder_layers", "classes", "pixel_decoder", "predictor", "total"), PUBLISHED)
def test_parameter_counts(without_values, backbone, encoder_layers, classes, pixel_decoder, predictor, total):
    model = without_values(
        build_model,
        ModelConfig(
            num_classes=classes,
            backbone=BackboneConfig(backbone),
            pixel_decoder=PixelDecoderConfig("transformer_fpn" if encoder_layers else "fpn"),
            transformer_decoder=TransformerDecoderConfig(
                in_feature="transformer_encoder" if encoder_layers else "res5"
            ),
        ),
    )
    assert count(model.backbone.trainable_variables) == BACKBONES[backbone]
    assert count(model.pixel_decoder.trainable_variables) == pixel_decoder
    parts = (model.transformer_decoder, model.class_head, model.mask_head)
    head = sum(count(part.trainable_variables) for part in parts)
    assert head == (total - BACKBONES[backbone] - pixel_decoder if predictor is None else predictor)
    assert count(model.trainable_variables) == total
    # A frozen norm keeps two vectors of affine parameters, which the published counts leave out, and two of statistics.
    assert count(model.non_trainable_weights) == 2 * FROZEN_AFFINE.get(backbone, 0)


def test_every_published_architecture_is_counted():
    assert {row[0] for row in PUBLISHED} == set(BACKBONES)


def test_trainable_norms_have_trainable_affine_parameters(without_values):
    frozen = without_values(build_model, TINY)
    trained = without_values(build_model, dataclasses.replace(TINY, backbone=BackboneConfig("resnet18", norm="batch")))
    affine = count(frozen.non_trainable_weights) // 2
    assert count(trained.trainable_variables) == count(frozen.trainable_variables) + affine
    assert count(trained.non_trainable_weights) == affine


@pytest.mark.parametrize("name", ["resnet34", "resnet101c", "swin_base"])
def test_named_backbones(without_values, name):
    options = {"drop_path_rate": 0.17} if name.startswith("swin") else {}
    model = without_values(build_model, ModelConfig(backbone=BackboneConfig(name, **options)))
    config = model.backbone.get_config()
    if name == "swin_base":
        assert (config["embed_dim"], config["window_size"], config["drop_path_rate"]) == (128, 12, 0.17)
        assert config["depths"] == [2, 2, 18, 2] and list(config["num_heads"]) == [4, 8, 16, 32]
    else:
        assert config["depth"] == (34 if name == "resnet34" else 101) and config["norm"] == "frozen"
        assert (config["stem"], list(config["multi_grid"])) == (
            ("deep", [1, 2, 4]) if name == "resnet101c" else ("basic", [1, 1, 1])
        )


def test_every_option_arrives(without_values):
    """Each field of the configuration is given a value of its own and found again in the model."""
    pixel_decoder = PixelDecoderConfig("transformer_fpn", 64, 24, "none", 1, 4, 40, 0.2, True)
    decoder = TransformerDecoderConfig(9, 32, 2, 48, 0.3, 1, 3, True, "transformer_encoder", True)
    model = without_values(
        build_model,
        ModelConfig(
            num_classes=5,
            backbone=BackboneConfig("resnet18", norm="batch"),
            pixel_decoder=pixel_decoder,
            transformer_decoder=decoder,
            deep_supervision=False,
            size_divisibility=64,
            pixel_mean=(1.0, 2.0, 3.0),
            pixel_std=(4.0, 5.0, 6.0),
            precision="mixed_bfloat16",
        ),
    )
    for part, section in ((model.pixel_decoder, pixel_decoder), (model.transformer_decoder, decoder)):
        config = part.get_config()
        for field in dataclasses.fields(section):
            if field.name != "name":
                assert config[field.name] == getattr(section, field.name), field.name
    config = model.get_config()
    assert (config["num_classes"], config["size_divisibility"], config["deep_supervision"]) == (5, 64, False)
    assert (config["pixel_mean"], config["pixel_std"]) == ([1.0, 2.0, 3.0], [4.0, 5.0, 6.0])
    assert model.backbone.norm == "batch" and model.dataset_info is None
    parts = (model, model.preprocessing, model.backbone, model.pixel_decoder, model.transformer_decoder)
    assert {part.dtype_policy.name for part in (*parts, model.class_head, model.mask_head)} == {"mixed_bfloat16"}


def test_dataset_info(without_values):
    info = DatasetInfo("fruit", ("apple", "pear", "table"), thing_ids=(0, 1))
    assert without_values(build_model, TINY, info).dataset_info == info
    with pytest.raises(ValueError, match=r"must describe the model's 3 classes. Received: 2 classes \(pair\)"):
        build_model(TINY, DatasetInfo("pair", ("a", "b")))


@pytest.mark.parametrize("suffix", [".weights.h5", ".keras"])
def test_weights_to_start_from(tmp_path, suffix):
    path = str(tmp_path / f"model{suffix}")
    source = build_model(TINY)
    source.save(path) if suffix == ".keras" else source.save_weights(path)
    model = build_model(dataclasses.replace(TINY, weights=path))
    for actual, expected in zip(model.weights, source.weights, strict=True):
        np.testing.assert_array_equal(actual, expected)


def test_backbone_weights_to_start_from(tmp_path):
    """A file of a torchvision classifier fills the backbone and nothing else; a whole model's weights go before it."""
    path = tmp_path / "resnet18.pkl"
    arrays = torchvision_arrays(build_model(TINY).backbone)
    path.write_bytes(pickle.dumps(arrays))
    config = dataclasses.replace(TINY, backbone=dataclasses.replace(TINY.backbone, weights=str(path)))
    model = build_model(config)
    for key, array in torchvision_arrays(model.backbone).items():
        np.testing.assert_array_equal(array, arrays[key])
    whole = str(tmp_path / "model.weights.h5")
    build_model(TINY).save_weights(whole)
    path.unlink()
    build_model(dataclasses.replace(config, weights=whole))
    with pytest.raises(FileNotFoundError, match=r"resnet18.pkl: no such file, named by model.backbone.weights"):
        build_model(config)


def test_backbone_weights_of_another_backbone(tmp_path):
    path = tmp_path / "other.pkl"
    path.write_bytes(pickle.dumps({"conv.weight": np.zeros(3, np.float32)}))
    backbone = dataclasses.replace(TINY.backbone, weights=str(path))
    with pytest.raises(ValueError, match=r"other.pkl: cannot give the backbone its weights: .* no known backbone"):
        build_model(dataclasses.replace(TINY, backbone=backbone))


def torchvision_arrays(backbone):
    """The backbone's weights as torchvision's files have them."""
    name_map = find_backbone_map(backbone, {"conv1.weight": 0, "layer1.0.conv1.weight": 0})
    arrays = {"fc.weight": np.zeros((1000, 512), np.float32)}
    for path, weight in named_weights(backbone).items():
        value = np.array(weight)
        arrays[name_map.source(path).keys[0]] = value.transpose(3, 2, 0, 1) if value.ndim == 4 else value
    return arrays


def test_weights_that_cannot_be_loaded(tmp_path):
    model = build_model(TINY)
    with pytest.raises(FileNotFoundError, match=r"absent.weights.h5: no such weights file"):
        load_weights(model, tmp_path / "absent.weights.h5")
    other = tmp_path / "model.pkl"
    other.write_bytes(b"?")
    with pytest.raises(ValueError, match=r"model.pkl: weights must be a .weights.h5 or .keras file"):
        load_weights(model, other)
    broken = tmp_path / "broken.weights.h5"
    broken.write_bytes(b"not HDF5")
    with pytest.raises(ValueError, match=r"broken.weights.h5: these weights do not fit the configured model"):
        load_weights(model, broken)
    larger = tmp_path / "larger.weights.h5"
    build_model(dataclasses.replace(TINY, num_classes=9)).save_weights(larger)
    with pytest.raises(ValueError, match=r"larger.weights.h5: these weights do not fit the configured model"):
        load_weights(model, larger)


def test_every_option_of_a_swin_backbone_arrives(without_values):
    section = BackboneConfig(
        "swin_tiny",
        mlp_ratio=2.0,
        qkv_bias=False,
        qk_scale=0.25,
        drop_rate=0.1,
        attention_drop_rate=0.2,
        drop_path_rate=0.4,
        absolute_position_embedding=True,
        pretrain_image_size=384,
        patch_norm=False,
    )
    config = without_values(build_model, dataclasses.replace(TINY, backbone=section)).backbone.get_config()
    for field in dataclasses.fields(section):
        if field.name in OWN_FIELDS["Swin"]:
            assert getattr(section, field.name) != field.default, field.name
            assert config[field.name] == getattr(section, field.name), field.name
    default = without_values(build_model, dataclasses.replace(TINY, backbone=BackboneConfig("swin_tiny"))).backbone
    assert default.qk_scale is None and default.absolute_pos_embed is None


def test_stages_of_a_resnet_are_frozen(without_values):
    section = BackboneConfig("resnet18", norm="batch", frozen_stages=2)
    backbone = without_values(build_model, dataclasses.replace(TINY, backbone=section)).backbone
    assert backbone.frozen_stages == 2
    assert {v.path.split("/")[-4] for v in backbone.trainable_variables} >= {"res3", "res4", "res5"}
    assert not [v.path for v in backbone.trainable_variables if "/stem/" in v.path or "/res2/" in v.path]


@pytest.mark.parametrize(
    ("backbone", "configured", "expected"),
    [("resnet18", -1, 0), ("swin_tiny", -1, 32), ("swin_tiny", 0, 0), ("resnet18", 32, 32), ("swin_tiny", 64, 64)],
)
def test_size_divisibility_may_be_the_backbones_own(without_values, backbone, configured, expected):
    config = dataclasses.replace(TINY, backbone=BackboneConfig(backbone), size_divisibility=configured)
    assert without_values(build_model, config).preprocessing.size_divisibility == expected


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        ("swin_tiny", {"frozen_stages": 2}, r"model\.backbone\.frozen_stages=2: acts on ResNets only, .* swin_tiny"),
        (
            "swin_tiny",
            {"norm": "batch", "channels": (8,) * 4},
            r"norm=.batch., model\.backbone\.channels=",
        ),
        ("resnet50", {"drop_path_rate": 0.1}, r"model\.backbone\.drop_path_rate=0\.1: acts on Swin only, .* resnet50"),
    ],
)
def test_options_of_another_backbone_are_refused(name, options, said):
    """They would silently do nothing."""
    with pytest.raises(ValueError, match=said):
        build_model(ModelConfig(backbone=BackboneConfig(name, **options)))


def test_options_that_are_off_are_those_of_every_backbone(without_values):
    """Benchmarks and comparisons turn dropout off without asking which backbone they have."""
    section = BackboneConfig("resnet18", drop_path_rate=0.0)
    assert without_values(build_model, dataclasses.replace(TINY, backbone=section)).backbone.name == "backbone"


def test_every_option_of_a_backbone_acts_on_some():
    both = {"name", "coordinate_frequencies", "recompute", "weights"}
    assert {field.name for field in dataclasses.fields(BackboneConfig)} == both.union(*OWN_FIELDS.values())
