import keras
import numpy as np
import pytest

from kmaskformer.models.transformer_decoder import QueryDecoder

OPTIONS = {"hidden_dim": 12, "num_heads": 3, "feedforward_dim": 20, "decoder_layers": 2, "dropout": 0.0}


def make(rng, channels=8, **options):
    decoder = QueryDecoder(**{"num_queries": 5, **OPTIONS, **options})
    decoder.build((None, None, None, channels))
    for variable in decoder.trainable_variables:
        variable.assign(rng.standard_normal(variable.shape) * 0.4 + (1.0 if variable.name == "gamma" else 0.0))
    return decoder


def paths(decoder):
    return {variable.path.removeprefix("transformer_decoder/") for variable in decoder.weights}


@pytest.mark.parametrize("encoder_layers", [0, 2])
@pytest.mark.parametrize("pre_norm", [False, True])
def test_queries_start_as_zeros_and_their_embedding_is_a_position(rng, encoder_layers, pre_norm):
    decoder = make(rng, encoder_layers=encoder_layers, pre_norm=pre_norm)
    feature = rng.standard_normal((2, 3, 4, 8)).astype("float32")
    projected = decoder.input_projection(feature)
    position = decoder.position_embedding(projected)
    memory = decoder.encoder(np.asarray(projected).reshape(2, 12, 12), position)
    expected = decoder.decoder(
        np.zeros((2, 5, 12), "float32"), memory, position, np.asarray(decoder.query_embedding)[None]
    )
    outputs = decoder(feature)
    assert len(outputs) == 2
    for output, value in zip(outputs, expected, strict=True):
        assert output.shape == (2, 5, 12)
        np.testing.assert_allclose(output, value, rtol=1e-4, atol=1e-5)


def test_input_projection_is_a_linear_map_of_each_pixel(rng):
    decoder = make(rng)
    feature = rng.standard_normal((2, 3, 4, 8)).astype("float32")
    kernel, bias = decoder.input_projection.kernel, decoder.input_projection.bias
    expected = feature @ np.asarray(kernel)[0, 0] + np.asarray(bias)
    np.testing.assert_allclose(decoder.input_projection(feature), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("channels", "enforce", "exists"), [(12, False, False), (12, True, True), (8, False, True)])
def test_projection_only_where_needed_or_enforced(rng, channels, enforce, exists):
    decoder = make(rng, channels, enforce_input_projection=enforce)
    assert (decoder.input_projection is not None) == exists
    assert ({"input_projection/kernel", "input_projection/bias"} <= paths(decoder)) == exists
    feature = rng.standard_normal((1, 2, 3, channels)).astype("float32")
    assert decoder(feature)[-1].shape == (1, 5, 12)


def test_without_projection_the_feature_is_the_memory(rng):
    decoder = make(rng, 12)
    feature = rng.standard_normal((1, 2, 3, 12)).astype("float32")
    expected = decoder.decoder(
        np.zeros((1, 5, 12), "float32"),
        feature.reshape(1, 6, 12),
        decoder.position_embedding(feature),
        np.asarray(decoder.query_embedding)[None],
    )
    np.testing.assert_allclose(decoder(feature)[-1], expected[-1], rtol=1e-4, atol=1e-5)


def test_pre_norm_normalises_the_memory_even_without_encoder_layers(rng):
    """As in the reference, where `encoder.norm` exists with 0 encoder layers."""
    assert {"encoder/norm/gamma", "encoder/norm/beta"} <= paths(make(rng, pre_norm=True))
    assert not any(path.startswith("encoder") for path in paths(make(rng)))


@pytest.mark.parametrize("encoder_layers", [1, 2])
def test_encoder_layers(rng, encoder_layers):
    layers = {path.split("/")[1] for path in paths(make(rng, encoder_layers=encoder_layers)) if "encoder/" in path[:8]}
    assert layers == {f"layer_{index}" for index in range(encoder_layers)}


def test_starts_as_the_reference():
    """Queries N(0, 1); the projection U(-b, b) with b = sqrt(3 / fan_in) and no bias."""
    decoder = QueryDecoder(decoder_layers=1)
    decoder.build((None, None, None, 2048))
    queries = np.asarray(decoder.query_embedding)
    assert queries.shape == (100, 256)
    assert queries.mean() == pytest.approx(0, abs=0.03) and queries.std() == pytest.approx(1, abs=0.02)
    assert np.abs(queries).max() > 3  # not truncated
    kernel, bound = np.asarray(decoder.input_projection.kernel), np.sqrt(3 / 2048)
    assert 0.999 * bound < np.abs(kernel).max() <= bound * 1.000001
    assert not np.asarray(decoder.input_projection.bias).any()


def test_dropout_acts_in_training_only(rng):
    decoder = make(rng, dropout=0.5)
    feature = rng.standard_normal((1, 2, 3, 8)).astype("float32")
    plain = np.asarray(decoder(feature)[-1])
    np.testing.assert_array_equal(plain, decoder(feature, training=False)[-1])
    assert not np.allclose(plain, decoder(feature, training=True)[-1])


def test_any_size(rng):
    decoder = make(rng)
    inputs = keras.Input((None, None, 8))
    model = keras.Model(inputs, decoder(inputs))
    assert model.output_shape == [(None, 5, 12)] * 2
    for size in ((1, 2), (3, 6)):
        feature = rng.standard_normal((2, *size, 8)).astype("float32")
        np.testing.assert_allclose(model(feature)[-1], decoder(feature)[-1], rtol=1e-5, atol=1e-5)


def test_needs_queries():
    with pytest.raises(ValueError, match=r"`num_queries` must be a positive integer. Received: num_queries=0"):
        QueryDecoder(num_queries=0)


def test_unknown_feature():
    with pytest.raises(ValueError, match=r"`in_feature` must be one of .*'transformer_encoder'.*in_feature='res6'"):
        QueryDecoder(in_feature="res6")
