"""Small models that find something, and a fresh process to run their exports in."""

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
from kmaskformer.models.pixel_decoder import FPNPixelDecoder, TransformerFPNPixelDecoder
from kmaskformer.models.transformer_decoder import QueryDecoder
from kmaskformer.structures import DatasetInfo

INFO = DatasetInfo("toys", ("ball", "sky", "brick", "grass", "cart"), thing_ids=(0, 2, 4))
SWIN = {"embed_dim": 16, "depths": (1, 2, 1, 1), "num_heads": (1, 2, 2, 4), "window_size": 5}


@keras.saving.register_keras_serializable(package="export_tests")
class TinyBackbone(keras.layers.Layer):
    """One strided convolution per level, quick to trace and to load."""

    def __init__(self, **kwargs):
        super().__init__(**{"name": "backbone", **kwargs})
        options = {"strides": 2, "activation": "relu", "dtype": self.dtype_policy}
        self.levels = [Convolution(8, 3, name=name, **options) for name in ("stem", "res2", "res3", "res4", "res5")]

    def build(self, input_shape):
        for convolution in self.levels:
            convolution.build(input_shape)
            input_shape = convolution.compute_output_shape(input_shape)

    def call(self, images):
        features = {}
        for convolution in self.levels:
            images = features[convolution.name] = convolution(images)
        features.pop("stem")
        return features

    def compute_output_shape(self, input_shape):
        return dict.fromkeys(("res2", "res3", "res4", "res5"), (*input_shape[:-1], 8))


@pytest.fixture(scope="session")
def make_model():
    """Makes a small MaskFormer whose untrained queries are confident and have masks of both signs."""

    def make(backbone="tiny", encoder_layers=0, dtype="float32", size_divisibility=32):
        keras.utils.set_random_seed(3)
        parts = {
            "tiny": lambda: TinyBackbone(dtype=dtype),
            "resnet": lambda: ResNet(18, dtype=dtype),
            "swin": lambda: SwinTransformer(**SWIN, dtype=dtype),
        }
        pixel_decoder = FPNPixelDecoder(32, 24, dtype=dtype)
        if encoder_layers:
            pixel_decoder = TransformerFPNPixelDecoder(
                32, 24, encoder_layers=encoder_layers, num_heads=2, feedforward_dim=24, dtype=dtype
            )
        decoder = QueryDecoder(
            num_queries=9, hidden_dim=16, num_heads=2, feedforward_dim=24, decoder_layers=2, dtype=dtype
        )
        model = MaskFormer(
            parts[backbone](),
            pixel_decoder,
            decoder,
            num_classes=5,
            size_divisibility=size_divisibility,
            dataset_info=INFO,
            dtype=dtype,
            name="maskformer",
        )
        model.build()
        _make_confident(model)
        return model

    return make


def _make_confident(model):
    """Larger weights where they decide: one class per query, and masks that cover parts of an image."""
    rng = np.random.default_rng(0)
    for variable in model.variables:
        if "query_embedding" in variable.path:
            variable.assign(rng.normal(size=variable.shape) * 3)
    kernel = model.class_head.kernel
    kernel.assign(rng.normal(size=kernel.shape) * 1.5)
    for variable in model.mask_head.variables:
        if "kernel" in variable.path:
            variable.assign(variable * 3.0)


@pytest.fixture(scope="session")
def scene():
    """Makes a smooth picture with edges, of any size."""

    def make(height, width, seed=0):
        rng = np.random.default_rng(seed)
        rows, columns = np.mgrid[:height, :width] / 16.0
        waves = [np.sin(rows * a + b) + np.cos(columns * c + d) for a, b, c, d in rng.uniform(0.3, 2, (3, 4))]
        image = 128 + 45 * np.stack(waves, axis=-1)
        image[height // 4 : height // 2, width // 5 : width // 2] = rng.integers(0, 256, 3)
        return np.clip(image + rng.normal(size=image.shape) * 6, 0, 255).astype(np.uint8)

    return make


@pytest.fixture()
def run_without_package():
    """Runs Python code in a process that has TensorFlow but neither this package nor Keras."""

    def run(script, *arguments):
        blocked = 'import sys\nsys.modules["kmaskformer"] = sys.modules["keras"] = None\n'
        command = [sys.executable, "-c", blocked + script, *map(str, arguments)]
        environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
        result = subprocess.run(command, env=environment, capture_output=True, text=True)
        assert result.returncode == 0, result.stderr[-3000:]
        return result.stdout

    return run
