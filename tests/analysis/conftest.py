"""A small MaskFormer, for the tests of this folder."""

from __future__ import annotations

import keras
import pytest

from kmaskformer.build import build_model
from kmaskformer.config import BackboneConfig, ModelConfig, PixelDecoderConfig, TransformerDecoderConfig


@pytest.fixture(scope="package")
def maskformer():
    keras.utils.set_random_seed(1)
    decoder = TransformerDecoderConfig(num_queries=6, hidden_dim=32, feedforward_dim=32, num_heads=4, decoder_layers=2)
    return build_model(
        ModelConfig(
            num_classes=10,
            backbone=BackboneConfig(name="resnet18"),
            pixel_decoder=PixelDecoderConfig(conv_dim=32, mask_dim=32),
            transformer_decoder=decoder,
        )
    )
