"""Small models, and a fresh process to compare them in."""

from __future__ import annotations

import os
import subprocess
import sys

import keras
import numpy as np
import pytest

from kmaskformer.backbones.resnet import ResNet
from kmaskformer.backbones.swin import SwinTransformer
from kmaskformer.layers.convolution import Convolution
from kmaskformer.models.maskformer import MaskFormer
from kmaskformer.models.per_pixel import PerPixelBaseline, PerPixelBaselinePlus
from kmaskformer.models.pixel_decoder import FPNPixelDecoder, TransformerFPNPixelDecoder
from kmaskformer.models.transformer_decoder import QueryDecoder

TINY_CHANNELS = {"res2": 8, "res3": 12, "res4": 20, "res5": 24}
SMALL_SWIN = {"embed_dim": 16, "depths": (1, 2, 1, 1), "num_heads": (1, 2, 2, 4), "window_size": 5}


@keras.saving.register_keras_serializable(package="tests")
class TinyBackbone(keras.layers.Layer):
    """One strided convolution per level: all that the rest of a model needs, and quick to trace."""

    def __init__(self, **kwargs):
        super().__init__(**{"name": "backbone", **kwargs})
        options = {"strides": 2, "activation": "relu", "dtype": self.dtype_policy}
        self.stem = Convolution(8, 3, name="stem", **options)
        self.levels = [Convolution(count, 3, name=name, **options) for name, count in TINY_CHANNELS.items()]

    def build(self, input_shape):
        for convolution in (self.stem, *self.levels):
            convolution.build(input_shape)
            input_shape = convolution.compute_output_shape(input_shape)

    def call(self, images):
        x, features = self.stem(images), {}
        for convolution in self.levels:
            x = features[convolution.name] = convolution(x)
        return features

    def compute_output_shape(self, input_shape):
        return {name: (*input_shape[:-1], count) for name, count in TINY_CHANNELS.items()}


@pytest.fixture(scope="session")
def make_model():
    """Makes a small MaskFormer of 5 classes, with a backbone of a few convolutions, `resnet` or `swin`."""

    def make(dtype="float32", backbone=None, encoder_layers=0, decoder=None, **options):
        options = {"num_classes": 5, "name": "maskformer", **options}
        if backbone is None:
            backbone = TinyBackbone(dtype=dtype)
        elif backbone == "resnet":
            backbone = ResNet(18, dtype=dtype)
        elif backbone == "swin":
            backbone = SwinTransformer(**SMALL_SWIN, drop_path_rate=0.0, dtype=dtype)
        pixel_decoder = FPNPixelDecoder(32, 24, dtype=dtype)
        if encoder_layers:
            encoder = {"num_heads": 2, "feedforward_dim": 24, "dropout": 0.0}
            pixel_decoder = TransformerFPNPixelDecoder(32, 24, encoder_layers=encoder_layers, dtype=dtype, **encoder)
        decoder = {"hidden_dim": 16, "num_heads": 2, "feedforward_dim": 24, "dropout": 0.0, **(decoder or {})}
        decoder = QueryDecoder(**{"num_queries": 7, "decoder_layers": 2, **decoder}, dtype=dtype)
        model = MaskFormer(backbone, pixel_decoder, decoder, dtype=dtype, **options)
        model.build()
        return model

    return make


@pytest.fixture(scope="session")
def make_baseline():
    """Makes a small per-pixel baseline of 5 classes, `per_pixel` or `per_pixel_plus`."""

    def make(kind, dtype="float32", dropout=0.0, **options):
        parts = (TinyBackbone(dtype=dtype), FPNPixelDecoder(32, 24, dtype=dtype))
        options = {"num_classes": 5, "name": kind, "dtype": dtype, **options}
        if kind == "per_pixel":
            model = PerPixelBaseline(*parts, **options)
        else:
            decoder = QueryDecoder(5, 16, 2, 24, dropout, decoder_layers=2, dtype=dtype)
            model = PerPixelBaselinePlus(*parts, decoder, **options)
        model.build()
        return model

    return make


@pytest.fixture()
def images(rng):
    """Two images whose sides are no multiples of anything."""
    return rng.integers(0, 256, (2, 45, 70, 3), dtype="uint8")


@pytest.fixture()
def targets(rng):
    """Segments of the two images; the second has one less."""
    return {
        "segment_map": rng.integers(-1, 2, (2, 45, 70)).astype("int32"),
        "labels": np.array([[1, 4], [2, 0]], "int32"),
        "valid": np.array([[True, True], [True, False]]),
    }


@pytest.fixture()
def run_script(repository):
    """Runs Python code in a fresh process."""

    def run(script, **environment):
        environment = {**os.environ, "PYTHONPATH": str(repository), **environment}
        result = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True)
        assert result.returncode == 0, result.stderr[-3000:]
        return result.stdout

    return run
