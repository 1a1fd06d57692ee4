"""Every layer of the package goes through the same checks; a new layer joins by one row of the table."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import json
import pkgutil
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

import kmaskformer
from kmaskformer.backbones.adapters import KerasModelBackbone
from kmaskformer.backbones.coordinates import CoordinateBackbone
from kmaskformer.backbones.resnet import ResidualBlock, ResNet, ResNetStage, ResNetStem
from kmaskformer.backbones.swin import PatchEmbedding, PatchMerging, SwinStage, SwinTransformer
from kmaskformer.layers.attention import MultiHeadAttention
from kmaskformer.layers.convolution import Convolution
from kmaskformer.layers.dense import Dense
from kmaskformer.layers.drop_path import DropPath
from kmaskformer.layers.mlp import MLP
from kmaskformer.layers.normalization import FrozenBatchNormalization, GroupNormalization, LayerNormalization
from kmaskformer.layers.position_embedding import SinePositionEmbedding
from kmaskformer.layers.swin_block import SwinBlock, SwinMLP
from kmaskformer.layers.transformer import (
    TransformerDecoder,
    TransformerDecoderLayer,
    TransformerEncoder,
    TransformerEncoderLayer,
)
from kmaskformer.layers.window_attention import WindowAttention
from kmaskformer.models.pixel_decoder import FPNPixelDecoder, TransformerFPNPixelDecoder
from kmaskformer.models.preprocessing import ImagePreprocessing
from kmaskformer.models.transformer_decoder import QueryDecoder

TRANSFORMER = {"dim": 16, "num_heads": 2, "feedforward_dim": 24, "dropout": 0.1}
PIXELS, QUERIES = (2, 12, 16), (2, 5, 16)
ENCODER_INPUTS = (PIXELS, (1, 12, 16))
DECODER_INPUTS = (QUERIES, PIXELS, (1, 12, 16), (1, 5, 16))
MAP, IMAGE = (2, 5, 7, 16), (2, 37, 45, 3)
PYRAMID = ({"res2": (2, 9, 12, 6), "res3": (2, 5, 6, 8), "res4": (2, 3, 3, 10), "res5": (2, 2, 2, 12)},)
SWIN = {"embed_dim": 8, "depths": (2, 1, 1, 1), "num_heads": (1, 2, 2, 4), "window_size": 4}
BLOCK = {"dim": 16, "num_heads": 2, "window_size": 4}
RESIDUAL = {"width": 8, "strides": 2, "bottleneck": True, "norm": "batch"}
FPN = {"conv_dim": 32, "mask_dim": 12}


@dataclasses.dataclass(frozen=True)
class Row:
    """A layer with its arguments, the shapes of its inputs, and what is special about it."""

    cls: type
    arguments: dict[str, Any]
    inputs: tuple = (MAP,)
    half_dtype: str = "float16"
    fixed_length: bool = False  # only the batch axis may be unknown
    no_gradient: tuple[str, ...] = ()  # parts of paths of weights whose gradient is zero in exact arithmetic

    def layer(self, **options: Any) -> keras.layers.Layer:
        return self.cls(**self.arguments, **options)


# Scores move by a constant when the key's bias does, which a softmax does not see.
KEY_BIAS = ("key_projection/bias",)
# Queries start as zeros, so the first self-attention mixes equal values.
FIRST_SELF_ATTENTION = tuple(
    f"decoder/layer_0/self_attention/{name}"
    for name in ("query_projection", "key_projection", "value_projection/kernel")
)
TABLE = (
    Row(MultiHeadAttention, {"dim": 16, "num_heads": 2}, (QUERIES, PIXELS, PIXELS), no_gradient=KEY_BIAS),
    Row(Dense, {"units": 5, "activation": "relu"}),
    Row(MLP, {"hidden_dim": 9, "output_dim": 5, "num_layers": 3}, (QUERIES,)),
    Row(SinePositionEmbedding, {"dim": 8}, half_dtype="float32"),
    Row(TransformerEncoderLayer, TRANSFORMER, ENCODER_INPUTS, no_gradient=KEY_BIAS),
    Row(TransformerEncoderLayer, {**TRANSFORMER, "pre_norm": True}, ENCODER_INPUTS, no_gradient=KEY_BIAS),
    Row(TransformerDecoderLayer, TRANSFORMER, DECODER_INPUTS, no_gradient=KEY_BIAS),
    Row(TransformerDecoderLayer, {**TRANSFORMER, "pre_norm": True}, DECODER_INPUTS, no_gradient=KEY_BIAS),
    Row(TransformerEncoder, {**TRANSFORMER, "num_layers": 2}, ENCODER_INPUTS, no_gradient=KEY_BIAS),
    Row(
        TransformerEncoder,
        {**TRANSFORMER, "num_layers": 1, "pre_norm": True},
        ENCODER_INPUTS,
        no_gradient=KEY_BIAS,
    ),
    Row(TransformerDecoder, {**TRANSFORMER, "num_layers": 2}, DECODER_INPUTS, no_gradient=KEY_BIAS),
    Row(Convolution, {"filters": 32, "kernel_size": 3, "strides": 2, "norm": "group", "activation": "relu"}),
    Row(FrozenBatchNormalization, {}),
    Row(GroupNormalization, {"groups": 4}),
    Row(LayerNormalization, {"epsilon": 1e-5}),
    Row(DropPath, {"rate": 0.3}),
    Row(WindowAttention, BLOCK, ((6, 16, 16),), fixed_length=True),
    Row(SwinMLP, {"dim": 16, "hidden_dim": 20}),
    Row(SwinBlock, BLOCK),
    Row(PatchEmbedding, {"dim": 8}, (IMAGE,)),
    Row(PatchMerging, {"dim": 16}),
    Row(SwinStage, {**BLOCK, "drop_path_rates": [0.0, 0.1]}, no_gradient=("downsample",)),
    Row(SwinTransformer, SWIN, (IMAGE,)),
    Row(ResNetStem, {"kind": "deep"}, (IMAGE,)),
    Row(ResidualBlock, {**RESIDUAL, "dilation": 1}),
    Row(ResNetStage, {**RESIDUAL, "dilations": (1, 1)}),
    Row(ResNet, {"depth": 18}, (IMAGE,)),
    Row(FPNPixelDecoder, FPN, PYRAMID),
    Row(FPNPixelDecoder, {**FPN, "norm": "none"}, PYRAMID),
    Row(
        TransformerFPNPixelDecoder,
        {**FPN, "encoder_layers": 1, "num_heads": 2, "feedforward_dim": 24},
        PYRAMID,
        no_gradient=KEY_BIAS,
    ),
    Row(
        QueryDecoder,
        {"num_queries": 5, "hidden_dim": 12, "num_heads": 2, "feedforward_dim": 24, "decoder_layers": 2},
        no_gradient=(*KEY_BIAS, *FIRST_SELF_ATTENTION),
    ),
    Row(ImagePreprocessing, {}, (IMAGE,)),
)
# These wrap other models; their tests are in backbones.
ELSEWHERE = {KerasModelBackbone, CoordinateBackbone}

every_layer = pytest.mark.parametrize("row", TABLE, ids=lambda row: row.cls.__name__)


def make_inputs(row):
    rng = np.random.default_rng(1)
    return keras.tree.map_shape_structure(lambda s: rng.standard_normal(s).astype("float32"), row.inputs)


def make_symbolic(row):
    """Inputs whose batch, heights and widths are unknown."""
    open_axes = (lambda s: (None, *s[1:])) if row.fixed_length else (lambda s: (*[None] * (len(s) - 1), s[-1]))
    return keras.tree.map_shape_structure(lambda s: keras.Input(batch_shape=open_axes(s)), row.inputs)


def flat_arrays(outputs):
    return [np.asarray(output) for output in keras.tree.flatten(outputs)]


def fits(shape, pattern):
    return len(shape) == len(pattern) and all(p in (None, s) for s, p in zip(shape, pattern, strict=True))


def test_the_table_is_complete():
    defined = set()
    for package in ("layers", "backbones", "models"):
        path = [f"{folder}/{package}" for folder in kmaskformer.__path__]
        for module in pkgutil.iter_modules(path, f"kmaskformer.{package}."):
            classes = inspect.getmembers(importlib.import_module(module.name), inspect.isclass)
            defined |= {cls for name, cls in classes if cls.__module__ == module.name and not name.startswith("_")}
    layers = {cls for cls in defined if issubclass(cls, keras.layers.Layer) and not issubclass(cls, keras.Model)}
    assert layers == {row.cls for row in TABLE} | ELSEWHERE


@every_layer
def test_shapes(row):
    """Eager, symbolic and dynamically shaped calls agree, in shapes and in values."""
    layer, inputs = row.layer(), make_inputs(row)
    eager = flat_arrays(layer(*inputs))
    symbolic = keras.tree.flatten(layer(*make_symbolic(row)))
    for output, pattern in zip(eager, symbolic, strict=True):
        assert fits(output.shape, pattern.shape)
        assert keras.backend.standardize_dtype(pattern.dtype) == output.dtype
    specs = keras.tree.map_structure(lambda x: tf.TensorSpec(x.shape, x.dtype), make_symbolic(row))
    graph = flat_arrays(tf.function(lambda *args: layer(*args), input_signature=specs)(*inputs))
    for output, expected in zip(graph, eager, strict=True):
        np.testing.assert_allclose(output, expected, rtol=0, atol=1e-4 * max(1, np.abs(expected).max()))


@every_layer
def test_config_round_trip(row):
    layer = row.layer(name="given_name")
    config = json.loads(json.dumps(keras.saving.serialize_keras_object(layer)))
    again = keras.saving.deserialize_keras_object(config)
    assert type(again) is row.cls
    assert again.get_config() == layer.get_config()
    assert again.name == "given_name"


@every_layer
def test_save_and_load(row, tmp_path):
    layer, inputs = row.layer(), make_inputs(row)
    symbolic = make_symbolic(row)
    model = keras.Model(keras.tree.flatten(symbolic), keras.tree.flatten(layer(*symbolic)))
    expected = flat_arrays(model(keras.tree.flatten(inputs)))
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    for output, value in zip(flat_arrays(loaded(keras.tree.flatten(inputs))), expected, strict=True):
        np.testing.assert_array_equal(output, value)
    assert [v.path for v in loaded.weights] == [v.path for v in model.weights]


@every_layer
def test_mixed_precision(row):
    """Half precision inside, float32 weights, about the same numbers."""
    layer, half, inputs = row.layer(), row.layer(dtype="mixed_float16"), make_inputs(row)
    expected = flat_arrays(layer(*inputs))
    half(*inputs)
    for source, target in zip(layer.weights, half.weights, strict=True):
        assert keras.backend.standardize_dtype(target.dtype) == "float32", target.path
        target.assign(source)
    for output, value in zip(flat_arrays(half(*inputs)), expected, strict=True):
        assert output.dtype == row.half_dtype
        np.testing.assert_allclose(output.astype("float32"), value, rtol=0, atol=2e-2 * max(1, np.abs(value).max()))
    for part in half._flatten_layers():
        expected_policy = "float32" if isinstance(part, SinePositionEmbedding) else "mixed_float16"
        assert part.dtype_policy.name == expected_policy, part.path


@every_layer
def test_gradient_reaches_every_weight(row):
    layer, inputs = row.layer(), make_inputs(row)
    rng = np.random.default_rng(2)
    layer(*inputs)
    for variable in layer.trainable_variables:  # zero biases would hide the kernels before them
        variable.assign_add(0.1 * rng.standard_normal(variable.shape))
    with tf.GradientTape() as tape:
        outputs = keras.tree.flatten(layer(*inputs))
        total = sum(tf.reduce_sum(output * rng.standard_normal(output.shape).astype("float32")) for output in outputs)
    for variable, gradient in zip(
        layer.trainable_variables, tape.gradient(total, layer.trainable_variables), strict=True
    ):
        assert gradient is not None, variable.path
        gradient = np.asarray(tf.convert_to_tensor(gradient))
        assert np.isfinite(gradient).all(), variable.path
        assert gradient.any() or any(part in variable.path for part in row.no_gradient), variable.path
