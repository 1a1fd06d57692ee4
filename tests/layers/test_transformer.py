import keras
import numpy as np
import pytest

from kmaskformer.layers.transformer import (
    TransformerDecoder,
    TransformerDecoderLayer,
    TransformerEncoder,
    TransformerEncoderLayer,
)

DIM, HEADS, FEEDFORWARD = 12, 3, 20
OPTIONS = {"num_heads": HEADS, "feedforward_dim": FEEDFORWARD, "dropout": 0.0}


def randomize(layer, rng):
    for variable in layer.trainable_variables:
        variable.assign(rng.standard_normal(variable.shape) * 0.4 + (1.0 if variable.name == "gamma" else 0.0))
    return layer


def make(cls, rng, *args, **options):
    layer = cls(DIM, *args, **{**OPTIONS, **options})
    layer.build((None, None, DIM))
    return randomize(layer, rng)


def value(variable):
    return np.asarray(variable, "float64")


def linear(layer, x):
    return x @ value(layer.kernel) + value(layer.bias)


def norm(layer, x):
    scaled = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5)
    return scaled * value(layer.gamma) + value(layer.beta)


def attention(layer, query, key, values):
    query, key = linear(layer.query_projection, query), linear(layer.key_projection, key)
    values, heads = linear(layer.value_projection, values), []
    for part in np.split(np.arange(DIM), HEADS):
        scores = query[..., part] @ key[..., part].transpose(0, 2, 1) / np.sqrt(DIM // HEADS)
        weights = np.exp(scores)
        heads.append(weights / weights.sum(-1, keepdims=True) @ values[..., part])
    return linear(layer.output_projection, np.concatenate(heads, axis=-1))


def feedforward(layer, x):
    return linear(layer.linear2, np.maximum(linear(layer.linear1, x), 0))


def encoder_layer(layer, x, position):
    if layer.pre_norm:
        y = norm(layer.norm1, x)
        x = x + attention(layer.self_attention, y + position, y + position, y)
        return x + feedforward(layer, norm(layer.norm2, x))
    x = norm(layer.norm1, x + attention(layer.self_attention, x + position, x + position, x))
    return norm(layer.norm2, x + feedforward(layer, x))


def decoder_layer(layer, x, memory, position, query):
    if layer.pre_norm:
        y = norm(layer.norm1, x)
        x = x + attention(layer.self_attention, y + query, y + query, y)
        x = x + attention(layer.cross_attention, norm(layer.norm2, x) + query, memory + position, memory)
        return x + feedforward(layer, norm(layer.norm3, x))
    x = norm(layer.norm1, x + attention(layer.self_attention, x + query, x + query, x))
    x = norm(layer.norm2, x + attention(layer.cross_attention, x + query, memory + position, memory))
    return norm(layer.norm3, x + feedforward(layer, x))


def tensor(rng, batch, length):
    return rng.standard_normal((batch, length, DIM)).astype("float32")


def decoder_inputs(rng):
    return tensor(rng, 2, 4), tensor(rng, 2, 7), tensor(rng, 1, 7), tensor(rng, 1, 4)


@pytest.mark.parametrize("pre_norm", [False, True])
def test_encoder_layer(rng, pre_norm):
    layer = make(TransformerEncoderLayer, rng, pre_norm=pre_norm)
    x, position = tensor(rng, 2, 7), tensor(rng, 1, 7)
    np.testing.assert_allclose(layer(x, position), encoder_layer(layer, x, position), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("pre_norm", [False, True])
def test_decoder_layer(rng, pre_norm):
    layer = make(TransformerDecoderLayer, rng, pre_norm=pre_norm)
    tensors = decoder_inputs(rng)
    np.testing.assert_allclose(layer(*tensors), decoder_layer(layer, *tensors), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("pre_norm", [False, True])
def test_encoder(rng, pre_norm):
    """Position enters every layer; only the pre-norm stack ends in a norm."""
    encoder = make(TransformerEncoder, rng, 3, pre_norm=pre_norm)
    x, position = tensor(rng, 2, 7), tensor(rng, 1, 7)
    expected = x
    for layer in encoder.layers:
        expected = encoder_layer(layer, expected, position)
    expected = norm(encoder.norm, expected) if pre_norm else expected
    np.testing.assert_allclose(encoder(x, position), expected, rtol=1e-4, atol=1e-4)
    assert (encoder.norm is not None) == pre_norm


def test_encoder_without_layers(rng):
    x, position = tensor(rng, 2, 7), tensor(rng, 1, 7)
    encoder = make(TransformerEncoder, rng, 0)
    assert not encoder.weights
    np.testing.assert_array_equal(encoder(x, position), x)
    encoder = make(TransformerEncoder, rng, 0, pre_norm=True)
    assert [variable.path for variable in encoder.weights] == [f"{encoder.name}/norm/{n}" for n in ("gamma", "beta")]
    np.testing.assert_allclose(encoder(x, position), norm(encoder.norm, x.astype("float64")), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("pre_norm", [False, True])
def test_decoder_normalises_every_output_but_passes_on_the_raw_one(rng, pre_norm):
    decoder = make(TransformerDecoder, rng, 3, pre_norm=pre_norm)
    x, *others = decoder_inputs(rng)
    outputs = decoder(x, *others)
    assert len(outputs) == 3
    for layer, output in zip(decoder.layers, outputs, strict=True):
        x = decoder_layer(layer, x, *others)
        np.testing.assert_allclose(output, norm(decoder.norm, x), rtol=1e-4, atol=2e-4)


def test_decoder_needs_a_layer():
    with pytest.raises(ValueError, match=r"`num_layers` must be at least 1. Received: num_layers=0"):
        TransformerDecoder(DIM, 0, **OPTIONS)


@pytest.mark.parametrize(("cls", "count"), [(TransformerEncoderLayer, 4), (TransformerDecoderLayer, 6)])
def test_dropout_on_attention_activation_and_residuals(rng, cls, count):
    layer = make(cls, rng, dropout=0.3)
    dropouts = [part for part in layer._flatten_layers() if isinstance(part, keras.layers.Dropout)]
    assert len(dropouts) == count and {part.rate for part in dropouts} == {0.3}
    tensors = decoder_inputs(rng) if cls is TransformerDecoderLayer else (tensor(rng, 2, 7), tensor(rng, 1, 7))
    plain = np.asarray(layer(*tensors, training=False))
    np.testing.assert_array_equal(plain, layer(*tensors))
    for kept in range(count):  # each of them acts
        for index, dropout in enumerate(dropouts):
            dropout.rate = 0.5 if index == kept else 0.0
        assert not np.allclose(plain, layer(*tensors, training=True)), dropouts[kept].path


@pytest.mark.parametrize("cls", [TransformerEncoder, TransformerDecoder])
def test_starts_as_the_reference(cls):
    """Kernels Glorot uniform; the feed-forward biases keep PyTorch's default, attention's are zero."""
    stack = cls(256, 1, feedforward_dim=2048)
    stack.build((None, None, 256))
    layer = stack.layers[0]
    for part, fan_in in ((layer.linear1, 256), (layer.linear2, 2048)):
        kernel, bias = np.asarray(part.kernel), np.asarray(part.bias)
        bound = np.sqrt(6 / (256 + 2048))
        assert 0.999 * bound < np.abs(kernel).max() <= bound * 1.000001
        assert kernel.std() == pytest.approx(bound / np.sqrt(3), rel=0.01)
        assert 0.95 / np.sqrt(fan_in) < np.abs(bias).max() <= 1.000001 / np.sqrt(fan_in)
        assert bias.std() == pytest.approx(1 / np.sqrt(3 * fan_in), rel=0.15)
    for variable in stack.weights:
        if "norm" in variable.path or ("attention" in variable.path and variable.name == "bias"):
            expected = 1.0 if variable.name == "gamma" else 0.0
            assert (np.asarray(variable) == expected).all(), variable.path


@pytest.mark.parity
@pytest.mark.parametrize("pre_norm", [False, True])
def test_encoder_layer_equals_pytorch(rng, pre_norm):
    torch = pytest.importorskip("torch")
    layer = make(TransformerEncoderLayer, rng, pre_norm=pre_norm)
    other = torch.nn.TransformerEncoderLayer(DIM, HEADS, FEEDFORWARD, 0.0, batch_first=True, norm_first=pre_norm).eval()
    other.load_state_dict(torch_state(torch, layer))
    x = tensor(rng, 2, 7)
    expected = other(torch.tensor(x)).detach().numpy()
    np.testing.assert_allclose(layer(x, np.zeros_like(x)), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parity
@pytest.mark.parametrize("pre_norm", [False, True])
def test_decoder_layer_equals_pytorch(rng, pre_norm):
    torch = pytest.importorskip("torch")
    layer = make(TransformerDecoderLayer, rng, pre_norm=pre_norm)
    other = torch.nn.TransformerDecoderLayer(DIM, HEADS, FEEDFORWARD, 0.0, batch_first=True, norm_first=pre_norm).eval()
    other.load_state_dict(torch_state(torch, layer))
    x, memory = tensor(rng, 2, 4), tensor(rng, 2, 7)
    expected = other(torch.tensor(x), torch.tensor(memory)).detach().numpy()
    actual = layer(x, memory, np.zeros_like(memory), np.zeros_like(x))
    np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-4)


def torch_state(torch, layer):
    """The layer's weights under PyTorch's names; query, key and value packed."""
    state = {}
    for ours, theirs in (("self_attention", "self_attn"), ("cross_attention", "multihead_attn")):
        attention_layer = getattr(layer, ours, None)
        if attention_layer is None:
            continue
        parts = [getattr(attention_layer, f"{name}_projection") for name in ("query", "key", "value")]
        state[f"{theirs}.in_proj_weight"] = np.concatenate([np.asarray(part.kernel).T for part in parts])
        state[f"{theirs}.in_proj_bias"] = np.concatenate([np.asarray(part.bias) for part in parts])
        state[f"{theirs}.out_proj.weight"] = np.asarray(attention_layer.output_projection.kernel).T
        state[f"{theirs}.out_proj.bias"] = np.asarray(attention_layer.output_projection.bias)
    for name in ("linear1", "linear2"):
        state[f"{name}.weight"] = np.asarray(getattr(layer, name).kernel).T
        state[f"{name}.bias"] = np.asarray(getattr(layer, name).bias)
    for name in ("norm1", "norm2", "norm3"):
        if hasattr(layer, name):
            state[f"{name}.weight"] = np.asarray(getattr(layer, name).gamma)
            state[f"{name}.bias"] = np.asarray(getattr(layer, name).beta)
    return {name: torch.tensor(np.ascontiguousarray(array)) for name, array in state.items()}
