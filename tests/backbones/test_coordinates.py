"""Coordinates of pixels as channels of feature maps."""

from __future__ import annotations

import keras
import numpy as np
import pytest
import tensorflow as tf

from kmaskformer.backbones.coordinates import CoordinateBackbone
from kmaskformer.backbones.resnet import ResNet
from kmaskformer.build import build_model
from kmaskformer.config import BackboneConfig, ModelConfig, PixelDecoderConfig, TransformerDecoderConfig

CHANNELS = (8, 12, 16, 20)


def make(num_frequencies=2, **options):
    inside = ResNet(18, channels=CHANNELS, stem_channels=8, num_blocks=(1, 1, 1, 1), **options)
    return CoordinateBackbone(inside, num_frequencies, **options)


def images(height, width):
    return np.random.default_rng(0).standard_normal((2, height, width, 3)).astype("float32")


def test_appends_sines_and_cosines_of_both_axes():
    backbone, x = make(), images(64, 32)
    features, plain = backbone(x), backbone.backbone(x)
    for name, channels in zip(("res2", "res3", "res4", "res5"), CHANNELS, strict=True):
        assert features[name].shape == (*plain[name].shape[:-1], channels + 8)
        np.testing.assert_array_equal(features[name][..., :channels], plain[name])
    # res5 has two rows, whose centres are at 1/4 and 3/4, and one column, at 1/2: sin and cos of pi y and 2 pi y.
    half = np.sqrt(0.5)
    rows = [[half, 1.0, half, 0.0], [half, -1.0, -half, 0.0]]
    expected = [[*row, 1.0, 0.0, 0.0, -1.0] for row in rows]
    for coordinates in np.asarray(features["res5"])[:, :, 0, 20:]:
        np.testing.assert_allclose(coordinates, expected, atol=1e-6)


def test_every_pixel_is_told_apart():
    """With one frequency the coordinates of a map differ everywhere."""
    coordinates = np.asarray(make(1)(images(128, 96))["res2"])[0, ..., CHANNELS[0] :].reshape(-1, 4)
    distances = np.abs(coordinates[:, None] - coordinates[None]).max(-1) + np.eye(len(coordinates))
    assert distances.min() > 1e-3


def test_shapes_of_unknown_sizes():
    backbone = make()
    symbolic = backbone(keras.Input((None, None, 3)))
    assert symbolic["res4"].shape == (None, None, None, 24)
    assert backbone.feature_channels == {"res2": 16, "res3": 20, "res4": 24, "res5": 28}
    assert backbone.size_divisibility == 0
    graph = tf.function(backbone, input_signature=[tf.TensorSpec((None, None, None, 3))])
    x = images(37, 45)
    for name, feature in graph(x).items():
        np.testing.assert_allclose(feature, backbone(x)[name], atol=1e-5)


def test_half_precision_computes_coordinates_in_full():
    exact = make()(images(32, 64))["res2"]
    half = make(dtype="mixed_bfloat16")(images(32, 64))["res2"]
    assert keras.backend.standardize_dtype(half.dtype) == "bfloat16"
    np.testing.assert_allclose(tf.cast(half, "float32")[..., 8:], exact[..., 8:], atol=4e-3)


def test_a_model_of_it_survives_a_file(tmp_path):
    config = ModelConfig(
        num_classes=2,
        backbone=BackboneConfig("resnet18", channels=CHANNELS, coordinate_frequencies=3),
        pixel_decoder=PixelDecoderConfig(conv_dim=32, mask_dim=16),
        transformer_decoder=TransformerDecoderConfig(4, 16, 2, 24, decoder_layers=1),
    )
    model = build_model(config)
    assert isinstance(model.backbone, CoordinateBackbone)
    assert model.backbone.backbone.feature_channels["res5"] == 20
    assert all(variable.parameter_group == "backbone" for variable in model.backbone.trainable_variables)
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    x = images(40, 50) * 50 + 100
    np.testing.assert_array_equal(loaded(x)["mask_logits"], model(x)["mask_logits"])
    assert [v.path for v in loaded.weights] == [v.path for v in model.weights]


def test_refuses_no_frequencies():
    with pytest.raises(ValueError, match="Received: num_frequencies=0"):
        make(0)
