import math

import keras
import numpy as np
import pytest

from kmaskformer.backbones.swin import (
    SWIN_BASE,
    SWIN_LARGE,
    SWIN_SMALL,
    SWIN_TINY,
    SwinTransformer,
    join_patches,
)
from kmaskformer.layers.swin_block import pad_to_multiple
from kmaskformer.ops.bicubic import bicubic_matrix

TOY = {"embed_dim": 8, "depths": (2, 1, 1, 1), "num_heads": (1, 2, 2, 4), "window_size": 3}


def num_elements(variables) -> int:
    return sum(int(np.prod(variable.shape)) for variable in variables)


@pytest.fixture(scope="module")
def toy():
    """A small model with weights large enough for attention and position bias to matter."""
    backbone = SwinTransformer(**TOY, drop_path_rate=0.0)
    backbone.build((None, None, None, 3))
    rng = np.random.default_rng(0)
    for variable in backbone.trainable_variables:
        variable.assign(np.asarray(variable) + 0.3 * rng.standard_normal(variable.shape))
    return backbone


@pytest.fixture(scope="module")
def positioned(toy):
    """The same with a map of positions for images of 32 x 32."""
    backbone = SwinTransformer(**TOY, drop_path_rate=0.0, absolute_position_embedding=True, pretrain_image_size=32)
    backbone.build((None, None, None, 3))
    plain = {variable.path: variable for variable in toy.weights}
    for variable in backbone.weights:
        if variable.path in plain:
            variable.assign(plain.pop(variable.path))
    assert not plain
    backbone.absolute_pos_embed.assign(np.random.default_rng(1).standard_normal((1, 8, 8, 8)))
    return backbone


@pytest.fixture()
def unallocated():
    """Variables created here have a shape and no memory: Swin-L has 0.8 GB of weights."""
    with keras.StatelessScope(initialize_variables=False):
        yield
    keras.utils.clear_session()


@pytest.mark.parametrize(
    ("arguments", "count"),
    [
        (SWIN_TINY, 27_520_698),
        (SWIN_SMALL, 48_838_602),
        (SWIN_BASE, 86_880_376),
        (SWIN_LARGE, 195_201_204),
    ],
    ids=["T", "S", "B", "L"],
)
def test_parameter_counts_are_the_published_ones(arguments, count, unallocated):
    backbone = SwinTransformer(**arguments)
    backbone.build((None, None, None, 3))
    assert num_elements(backbone.trainable_variables) == count


@pytest.mark.parametrize(("size", "side"), [(224, 56), (384, 96)])
def test_map_of_positions_adds_one_number_per_channel_and_patch(size, side, unallocated):
    backbone = SwinTransformer(**SWIN_TINY, absolute_position_embedding=True, pretrain_image_size=size)
    backbone.build((None, None, None, 3))
    assert num_elements(backbone.trainable_variables) == 27_520_698 + 96 * side**2
    assert [v.path for v in backbone.weights if "absolute" in v.path] == ["backbone/absolute_pos_embed"]


def test_map_of_positions_starts_small_and_is_absent_by_default(toy):
    assert toy.absolute_pos_embed is None
    backbone = SwinTransformer(**TOY, absolute_position_embedding=True)
    backbone.build((None, None, None, 3))
    values = np.asarray(backbone.absolute_pos_embed)
    assert values.shape == (1, 8, 56, 56)
    assert 0.0195 < values.std() < 0.0205 and abs(values.mean()) < 1e-3


@pytest.mark.parametrize(("height", "width"), [(32, 32), (64, 96), (45, 18)])
def test_map_of_positions_is_resized_and_added_to_the_patches(positioned, rng, height, width):
    images = rng.standard_normal((2, height, width, 3)).astype("float32")
    rows, columns = (np.asarray(bicubic_matrix(8, -(-side // 4))) for side in (height, width))
    positions = np.asarray(positioned.absolute_pos_embed)
    if (height, width) != (32, 32):  # at its own size, the map is not touched
        positions = rows @ positions @ columns.T
    patches = np.asarray(positioned.patch_embed(images)) + positions.transpose(0, 2, 3, 1)
    expected = positioned.norms[0](positioned.stages[0](patches)[0])
    np.testing.assert_allclose(positioned(images)["res2"], expected, atol=1e-5)


def test_map_of_zeros_changes_nothing(positioned, toy, rng):
    images, values = rng.standard_normal((1, 45, 70, 3)).astype("float32"), np.asarray(positioned.absolute_pos_embed)
    assert np.abs(np.asarray(positioned(images)["res5"]) - np.asarray(toy(images)["res5"])).max() > 1e-2
    positioned.absolute_pos_embed.assign(np.zeros_like(values))
    features = positioned(images)
    positioned.absolute_pos_embed.assign(values)
    for name, value in toy(images).items():
        np.testing.assert_array_equal(features[name], value)


def test_map_of_positions_in_a_graph_of_unknown_size(positioned, rng):
    tf = pytest.importorskip("tensorflow")
    dynamic = tf.function(positioned, input_signature=[tf.TensorSpec((None, None, None, 3))])
    for size in [(45, 70), (32, 32)]:
        images = rng.standard_normal((1, *size, 3)).astype("float32")
        eager = positioned(images)
        for name, value in dynamic(images).items():
            np.testing.assert_allclose(value, eager[name], atol=2e-5)


def test_map_of_positions_saves_and_loads(positioned, rng, assert_saves_and_loads):
    images = rng.standard_normal((1, 45, 70, 3)).astype("float32")
    assert_saves_and_loads(positioned, images)


@pytest.mark.parametrize("size", [0, -4, 30])
def test_size_of_the_map_of_positions_is_checked(size):
    message = rf"`pretrain_image_size` must be a positive multiple of 4. Received: {size}"
    with pytest.raises(ValueError, match=message):
        SwinTransformer(**TOY, pretrain_image_size=size)


def test_scale_of_scores_reaches_every_block():
    backbone = SwinTransformer(**TOY, qk_scale=0.25)
    assert {block.attn.qk_scale for stage in backbone.stages for block in stage.blocks} == {0.25}


def test_features_equal_the_original(assert_golden):
    assert_golden(SwinTransformer(**SWIN_TINY), "maskformer_swin_t_ade20k150")


@pytest.mark.parametrize(("height", "width"), [(64, 96), (65, 97), (33, 70), (1, 3)])
def test_sides_are_rounded_up(toy, height, width, rng):
    images = rng.standard_normal((1, height, width, 3)).astype("float32")
    shapes, side = {}, (-(-height // 4), -(-width // 4))
    for index, name in enumerate(("res2", "res3", "res4", "res5")):
        shapes[name] = (1, *side, 8 * 2**index)
        side = tuple((part + 1) // 2 for part in side)
    features = toy(images)
    assert {name: tuple(value.shape) for name, value in features.items()} == shapes
    assert toy.compute_output_shape(images.shape) == shapes
    assert toy.compute_output_shape((None, None, None, 3))["res5"] == (None, None, None, 64)
    assert toy.feature_channels == {name: shape[-1] for name, shape in shapes.items()}
    assert all(np.isfinite(np.asarray(value)).all() for value in features.values())


def test_image_is_padded_to_whole_patches_with_zeros(toy, rng):
    images = rng.standard_normal((1, 41, 50, 3)).astype("float32")
    padded = np.pad(images, ((0, 0), (0, 3), (0, 2), (0, 0)))
    for name, value in toy(images).items():
        np.testing.assert_allclose(value, toy(padded)[name], atol=1e-6)


@pytest.mark.parametrize("jit_compile", [False, True], ids=["graph", "XLA"])
def test_dynamic_shape_equals_eager(toy, jit_compile, rng):
    tf = pytest.importorskip("tensorflow")
    dynamic = tf.function(toy, input_signature=[tf.TensorSpec((None, None, None, 3))], jit_compile=jit_compile)
    for size in [(45, 70), (24, 24)]:
        images = rng.standard_normal((2, *size, 3)).astype("float32")
        eager = toy(images)
        for name, value in dynamic(images).items():
            np.testing.assert_allclose(value, eager[name], atol=2e-5)


@pytest.mark.slow
def test_jax_equals_tensorflow(positioned, rng, assert_equal_on_jax):
    assert_equal_on_jax(positioned, rng.standard_normal((2, 45, 70, 3)).astype("float32"))


def test_saves_and_loads(toy, rng, assert_saves_and_loads):
    assert_saves_and_loads(toy, rng.standard_normal((1, 40, 33, 3)).astype("float32"))


def test_config_round_trip():
    backbone = SwinTransformer(
        **TOY,
        mlp_ratio=2.0,
        qkv_bias=False,
        drop_rate=0.1,
        attention_drop_rate=0.2,
        patch_norm=False,
        qk_scale=0.5,
        absolute_position_embedding=True,
        pretrain_image_size=64,
    )
    again = SwinTransformer.from_config(backbone.get_config())
    assert again.get_config() == backbone.get_config()
    assert again.depths == (2, 1, 1, 1)
    assert (again.qk_scale, again.absolute_position_embedding, again.pretrain_image_size) == (0.5, True, 64)


def test_mixed_precision_is_close(toy, rng):
    images = rng.standard_normal((1, 64, 64, 3)).astype("float32")
    mixed = SwinTransformer(**TOY, drop_path_rate=0.0, dtype="mixed_bfloat16")
    mixed.build((None, None, None, 3))
    mixed.set_weights(toy.get_weights())
    for name, value in mixed(images).items():
        assert keras.backend.standardize_dtype(value.dtype) == "bfloat16"
        difference = np.asarray(keras.ops.cast(value, "float32")) - np.asarray(toy(images)[name])
        assert np.sqrt(np.mean(difference**2)) < 0.1


def test_stochastic_depth_rises_linearly_and_acts_in_training_only(rng):
    backbone = SwinTransformer(**TOY, drop_path_rate=0.3)
    rates = [block.drop_path.rate for stage in backbone.stages for block in stage.blocks]
    np.testing.assert_allclose(rates, np.arange(5) * 0.075, atol=1e-12)
    images = rng.standard_normal((4, 32, 32, 3)).astype("float32")
    evaluated = np.asarray(backbone(images)["res5"])
    np.testing.assert_array_equal(evaluated, backbone(images, training=False)["res5"])
    assert np.abs(evaluated - backbone(images, training=True)["res5"]).max() > 1e-4


def test_gradient_reaches_every_weight(toy, rng):
    tf = pytest.importorskip("tensorflow")
    images = tf.constant(rng.standard_normal((1, 70, 70, 3)), tf.float32)
    with tf.GradientTape() as tape:
        loss = sum(tf.reduce_sum(tf.sin(value)) for value in toy(images, training=True).values())
    gradients = tape.gradient(loss, [v.value for v in toy.trainable_variables])
    for variable, gradient in zip(toy.trainable_variables, gradients, strict=True):
        assert float(tf.reduce_max(tf.abs(gradient))) > 0, variable.path


def test_initialisation_is_the_references():
    backbone = SwinTransformer(**{**TOY, "embed_dim": 64})
    backbone.build((None, None, None, 3))
    block = backbone.stages[0].blocks[0]
    for variable, fan_in in [
        (block.attn.qkv.kernel, 64),
        (block.attn.qkv.bias, 64),
        (block.mlp.fc2.kernel, 256),
        (block.mlp.fc2.bias, 256),
        (backbone.patch_embed.proj.kernel, 48),
        (backbone.stages[0].downsample.reduction.kernel, 256),
    ]:
        largest = np.abs(np.asarray(variable)).max()
        assert 0.9 / math.sqrt(fan_in) < largest <= 1.0 / math.sqrt(fan_in), variable.path
    table = np.asarray(backbone.stages[3].blocks[0].attn.relative_position_bias_table)
    assert 0.015 < table.std() < 0.025


def test_patch_merging_takes_pixels_column_by_column():
    odd = keras.ops.reshape(keras.ops.arange(1.0, 10.0), (1, 3, 3, 1))
    joined = np.asarray(join_patches(pad_to_multiple(odd, 2)))
    np.testing.assert_array_equal(joined[0, 0, 0], [1, 4, 2, 5])
    np.testing.assert_array_equal(joined[0, 0, 1], [3, 6, 0, 0])
    np.testing.assert_array_equal(joined[0, 1, 1], [9, 0, 0, 0])


@pytest.mark.parametrize("argument", ["depths", "num_heads"])
def test_wrong_number_of_stages_is_named(argument):
    with pytest.raises(ValueError, match=rf"`{argument}` must have one entry per stage \(4\). Received: \(2, 2\)"):
        SwinTransformer(**{**TOY, argument: (2, 2)})
