import keras
import numpy as np
import pytest

from kmaskformer.layers.swin_block import SwinBlock, pad_to_multiple
from kmaskformer.layers.window_attention import (
    WindowAttention,
    join_windows,
    relative_position_index,
    shifted_window_mask,
    split_windows,
)
from kmaskformer.ops.lean import gelu


def test_windows_are_squares_counted_row_by_row():
    x = np.arange(24, dtype="float32").reshape(1, 4, 6, 1)
    windows = np.asarray(split_windows(x, 2))
    assert windows.shape == (6, 4, 1)
    np.testing.assert_array_equal(windows[:, :, 0][:4], [[0, 1, 6, 7], [2, 3, 8, 9], [4, 5, 10, 11], [12, 13, 18, 19]])
    np.testing.assert_array_equal(join_windows(windows, 2, 4, 6), x)


def test_relative_position_index_of_a_window_of_two():
    expected = [[4, 3, 1, 0], [5, 4, 2, 1], [7, 6, 4, 3], [8, 7, 5, 4]]
    np.testing.assert_array_equal(relative_position_index(2), expected)


def test_mask_separates_what_the_shift_brought_together():
    mask = np.asarray(shifted_window_mask(4, 4, window_size=2, shift=1))
    assert mask.shape == (4, 4, 4)
    assert not mask[0].any()
    # Upper right window: left column is the image's last, right column was rolled in from the first.
    np.testing.assert_array_equal(~mask[1], np.tile(np.eye(2, dtype=bool), (2, 2)))
    np.testing.assert_array_equal(~mask[3], np.eye(4, dtype=bool))


def test_shifted_block_sees_neighbours_only(rng):
    """Changing one corner pixel must not change the opposite corner, which the cyclic shift puts in its window."""
    block = SwinBlock(4, num_heads=2, window_size=4, shift=2)
    block.build((1, 8, 8, 4))
    for variable in block.trainable_variables:  # The initial ones are so small that an effect may round to zero.
        variable.assign(rng.standard_normal(variable.shape))
    x = rng.standard_normal((1, 8, 8, 4)).astype("float32")
    changed = x.copy()
    changed[0, 0, 0] = [3.0, -2.0, 1.0, -1.0]  # Not a constant: the norm before the attention would remove it.
    mask = shifted_window_mask(8, 8, 4, 2)
    difference = np.abs(np.asarray(block(x, window_mask=mask)) - np.asarray(block(changed, window_mask=mask))).max(-1)[
        0
    ]
    assert difference[:2, :2].min() > 0, "pixels of the corner's region see the change"
    difference[:2, :2] = 0
    assert difference.max() == 0


@pytest.mark.parametrize("qk_scale", [None, 1.7])
def test_attention_equals_its_formula(qk_scale, rng):
    layer = WindowAttention(4, num_heads=2, window_size=2, qk_scale=qk_scale)
    scale = qk_scale or 1 / np.sqrt(2)
    windows = rng.standard_normal((3, 4, 4)).astype("float32")
    layer.build(windows.shape)
    layer.relative_position_bias_table.assign(rng.standard_normal((9, 2)))
    table, index = np.asarray(layer.relative_position_bias_table), relative_position_index(2)
    query, key, value = np.split(windows @ np.asarray(layer.qkv.kernel) + np.asarray(layer.qkv.bias), 3, axis=-1)
    heads = []
    for head, part in enumerate((slice(0, 2), slice(2, 4))):
        scores = query[..., part] @ key[..., part].transpose(0, 2, 1) * scale + table[index, head]
        weights = np.exp(scores) / np.exp(scores).sum(-1, keepdims=True)
        heads.append(weights @ value[..., part])
    expected = np.concatenate(heads, -1) @ np.asarray(layer.proj.kernel) + np.asarray(layer.proj.bias)
    np.testing.assert_allclose(layer(windows), expected, atol=1e-5)


def test_config_round_trips():
    attention = WindowAttention(4, 2, 3, qkv_bias=False, drop_rate=0.1, qk_scale=0.3)
    for layer in (attention, SwinBlock(4, 2, 3, shift=1, mlp_ratio=2.0, qk_scale=0.3)):
        again = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(layer))
        assert again.get_config() == layer.get_config()


def test_heads_must_divide_channels():
    with pytest.raises(ValueError, match=r"`num_heads` must divide `dim`. Received: dim=10, num_heads=3"):
        WindowAttention(10, 3, 7)


def test_gelu_is_exact():
    x = np.linspace(-4, 4, 9).astype("float32")
    np.testing.assert_allclose(gelu(keras.ops.array(x)), keras.activations.gelu(x, approximate=False), atol=1e-6)


def test_padding_is_on_the_right_and_bottom(rng):
    x = rng.standard_normal((1, 5, 8, 2)).astype("float32")
    padded = np.asarray(pad_to_multiple(keras.ops.array(x), 4))
    assert padded.shape == (1, 8, 8, 2)
    np.testing.assert_array_equal(padded[:, :5], x)
    assert not padded[:, 5:].any()
    assert pad_to_multiple(padded, 4) is padded


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("dtype", ["bfloat16", "float64"])
def test_attention_in_one_precision_throughout(dtype, training, rng):
    layer, exact = (WindowAttention(8, num_heads=2, window_size=2, dtype=one) for one in (dtype, "float32"))
    windows = rng.standard_normal((3, 4, 8)).astype("float32")
    for one in (layer, exact):
        one.build(windows.shape)
    layer.set_weights(exact.get_weights())
    found = keras.ops.cast(layer(windows, training=training), "float32")
    np.testing.assert_allclose(found, exact(windows), atol=1e-5 if dtype == "float64" else 3e-2)
