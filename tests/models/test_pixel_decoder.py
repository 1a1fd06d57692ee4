import keras
import numpy as np
import pytest

from kmaskformer.backbones.features import STRIDES
from kmaskformer.models.pixel_decoder import FPNPixelDecoder, TransformerFPNPixelDecoder, upsample_like

CHANNELS = {"res2": 6, "res3": 8, "res4": 10, "res5": 12}
SHAPES = {name: (None, None, None, channels) for name, channels in CHANNELS.items()}
ENCODER = {"encoder_layers": 2, "num_heads": 2, "feedforward_dim": 24, "dropout": 0.0}


def pyramid(rng, height=37, width=50):
    sizes = {name: (-(-height // stride), -(-width // stride)) for name, stride in STRIDES.items()}
    return {name: rng.standard_normal((2, *size, CHANNELS[name])).astype("float32") for name, size in sizes.items()}


def randomize(decoder, rng):
    decoder.build(SHAPES)
    for variable in decoder.trainable_variables:
        variable.assign(rng.standard_normal(variable.shape) * 0.3 + (1.0 if variable.name == "gamma" else 0.0))
    return decoder


def nearest(x, height, width):
    """PyTorch's rule: pixel floor(i * in / out)."""
    rows = np.arange(height) * x.shape[1] // height
    columns = np.arange(width) * x.shape[2] // width
    return np.asarray(x)[:, rows][:, :, columns]


def top_down(decoder, features, top):
    """The pyramid from its coarsest level, with PyTorch's upsampling."""
    x = top
    for index, level in ((3, "res4"), (2, "res3"), (1, "res2")):
        lateral = np.asarray(decoder.adapters[index](features[level]))
        x = decoder.convs[index](lateral + nearest(x, *lateral.shape[1:3]))
    return decoder.mask_features(x)


@pytest.mark.parametrize("norm", ["group", "none"])
@pytest.mark.parametrize("size", [(37, 50), (64, 96), (1, 33)])
def test_fpn(rng, norm, size):
    decoder = randomize(FPNPixelDecoder(32, 20, norm), rng)
    features = pyramid(rng, *size)
    outputs = decoder(features)
    assert list(outputs) == ["pixel_embedding"]
    expected = top_down(decoder, features, decoder.convs[4](features["res5"]))
    assert outputs["pixel_embedding"].shape == (*features["res2"].shape[:3], 20)
    np.testing.assert_allclose(outputs["pixel_embedding"], expected, rtol=1e-4, atol=1e-4)


def test_transformer_fpn(rng):
    """The encoder's output feeds the pyramid and is offered to the transformer decoder, before `layer_4`."""
    decoder = randomize(TransformerFPNPixelDecoder(32, 20, **ENCODER), rng)
    features = pyramid(rng, 70, 100)
    outputs = decoder(features)
    projected = decoder.input_projection(features["res5"])
    tokens = np.asarray(projected).reshape(2, -1, 32)
    encoded = np.asarray(decoder.encoder(tokens, decoder.position_embedding(projected))).reshape(projected.shape)
    np.testing.assert_allclose(outputs["transformer_encoder"], encoded, rtol=1e-4, atol=1e-5)
    expected = top_down(decoder, features, decoder.convs[4](encoded))
    np.testing.assert_allclose(outputs["pixel_embedding"], expected, rtol=1e-4, atol=1e-4)


def test_only_the_lateral_convolutions_and_the_last_lack_an_activation():
    decoder = FPNPixelDecoder(32, 32)
    activations = {conv.name: conv.activation.__name__ for conv in (*decoder.convs.values(), decoder.mask_features)}
    assert activations == {**{f"layer_{i}": "relu" for i in (4, 3, 2, 1)}, "mask_features": "linear"}
    assert {conv.activation.__name__ for conv in decoder.adapters.values()} == {"linear"}


@pytest.mark.parametrize("norm", ["group", "none"])
def test_biases_exist_where_no_norm_follows(norm):
    decoder = FPNPixelDecoder(32, 32, norm)
    decoder.build(SHAPES)
    names = [f"layer_{i}" for i in (4, 3, 2, 1)] + [f"adapter_{i}" for i in (3, 2, 1)]
    leaves = ("kernel", "norm/gamma", "norm/beta") if norm == "group" else ("kernel", "bias")
    expected = {f"pixel_decoder/{name}/{leaf}" for name in names for leaf in leaves}
    expected |= {"pixel_decoder/mask_features/kernel", "pixel_decoder/mask_features/bias"}
    assert {variable.path for variable in decoder.weights} == expected


def test_norms_have_32_groups():
    decoder = FPNPixelDecoder(64, 32)
    assert {conv.norm.groups for conv in (*decoder.convs.values(), *decoder.adapters.values())} == {32}


@pytest.mark.parametrize("decoder", [FPNPixelDecoder(norm="none"), TransformerFPNPixelDecoder(encoder_layers=1)])
def test_starts_as_the_reference(decoder):
    """Convolutions U(-b, b) with b = sqrt(3 / fan_in), biases zero."""
    decoder.build(dict.fromkeys(CHANNELS, (None, None, None, 512)))
    checked = 0
    for variable in decoder.trainable_variables:
        if "encoder" in variable.path or "norm" in variable.path:
            continue
        values = np.asarray(variable)
        if variable.name == "bias":
            assert not values.any(), variable.path
            continue
        bound = np.sqrt(3 / np.prod(values.shape[:3]))
        assert 0.99 * bound < np.abs(values).max() <= bound * 1.000001, variable.path
        assert values.std() == pytest.approx(bound / np.sqrt(3), rel=0.02)
        checked += 1
    assert checked == 8 + isinstance(decoder, TransformerFPNPixelDecoder)


@pytest.mark.parametrize("size", [(1, 1), (2, 3), (5, 8), (13, 40)])
@pytest.mark.parametrize("odd", [(0, 0), (1, 0), (0, 1), (1, 1)])
def test_upsampling_picks_pytorchs_pixels(rng, size, odd):
    """The finer level has twice the size, or one less."""
    fine = tuple(2 * side - less for side, less in zip(size, odd, strict=True))
    x = rng.standard_normal((2, *size, 3)).astype("float32")
    np.testing.assert_array_equal(upsample_like(x, np.zeros((2, *fine, 5))), nearest(x, *fine))


def test_any_size(rng):
    inputs = {name: keras.Input((None, None, channels), name=name) for name, channels in CHANNELS.items()}
    decoder = randomize(TransformerFPNPixelDecoder(32, 20, **ENCODER), rng)
    outputs = decoder(inputs)
    assert outputs["pixel_embedding"].shape == (None, None, None, 20)
    assert outputs["transformer_encoder"].shape == (None, None, None, 32)
    model = keras.Model(inputs, outputs)
    for height, width in ((64, 64), (37, 90)):
        features = pyramid(rng, height, width)
        expected = decoder(features)
        for name, value in model(features).items():
            np.testing.assert_allclose(value, expected[name], rtol=1e-5, atol=1e-5)


def test_encoder_options_arrive():
    decoder = TransformerFPNPixelDecoder(32, 20, encoder_layers=3, num_heads=4, feedforward_dim=40, pre_norm=True)
    decoder.build(SHAPES)
    assert len(decoder.encoder.layers) == 3 and decoder.encoder.norm is not None
    layer = decoder.encoder.layers[0]
    assert layer.self_attention.num_heads == 4 and layer.linear1.units == 40 and layer.pre_norm
    assert layer.dropout1.rate == 0.1


def test_dropout_acts_in_training_only(rng):
    decoder = randomize(TransformerFPNPixelDecoder(32, 20, **{**ENCODER, "dropout": 0.5}), rng)
    features = pyramid(rng)
    plain = np.asarray(decoder(features)["pixel_embedding"])
    np.testing.assert_array_equal(plain, decoder(features, training=False)["pixel_embedding"])
    assert not np.allclose(plain, decoder(features, training=True)["pixel_embedding"])


def test_unknown_norm():
    with pytest.raises(ValueError, match=r"`norm` must be .group. or .none.. Received: norm='GN'"):
        FPNPixelDecoder(norm="GN")
