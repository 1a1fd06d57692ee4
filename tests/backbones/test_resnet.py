import keras
import numpy as np
import pytest

from kmaskformer.backbones.resnet import ResidualBlock, ResNet

R101C = {"depth": 101, "stem": "deep", "multi_grid": (1, 2, 4)}


def num_elements(variables) -> int:
    return sum(int(np.prod(variable.shape)) for variable in variables)


def randomize(layer: keras.layers.Layer, rng: np.random.Generator) -> None:
    """Frozen statistics other than 0 and 1, so that a test sees them."""
    for variable in layer.non_trainable_variables:
        variable.assign(rng.uniform(0.5, 1.0, variable.shape))


@pytest.fixture(scope="module")
def resnet18():
    keras.utils.set_random_seed(0)
    backbone = ResNet(18)
    backbone.build((None, None, None, 3))
    randomize(backbone, np.random.default_rng(0))
    return backbone


@pytest.mark.parametrize(
    ("arguments", "trainable", "affine"),
    [
        ({"depth": 50}, 23_454_912, 53_120),
        ({"depth": 101}, 42_394_816, 105_344),
        (R101C, 42_518_208, 105_728),
    ],
    ids=["R50", "R101", "R101c"],
)
def test_parameter_counts_are_the_published_ones(arguments, trainable, affine):
    backbone = ResNet(**arguments)
    backbone.build((None, None, None, 3))
    assert num_elements(backbone.trainable_variables) == trainable
    frozen = [v for v in backbone.non_trainable_variables if v.path.endswith(("/scale", "/offset"))]
    assert num_elements(frozen) == affine
    assert num_elements(backbone.non_trainable_variables) == 2 * affine


def test_batch_norm_has_trainable_affine_parameters():
    backbone = ResNet(50, norm="batch")
    backbone.build((None, None, None, 3))
    assert num_elements(backbone.trainable_variables) == 23_454_912 + 53_120


@pytest.mark.parametrize(
    ("arguments", "case"),
    [({"depth": 50}, "maskformer_r50_ade20k150"), (R101C, "maskformer_r101c_cityscapes19")],
    ids=["R50", "R101c"],
)
def test_features_equal_the_original(arguments, case, assert_golden):
    assert_golden(ResNet(**arguments), case)


@pytest.mark.parametrize(("height", "width"), [(64, 96), (65, 97), (33, 70), (1, 3)])
def test_sides_are_rounded_up(resnet18, height, width, rng):
    images = rng.standard_normal((1, height, width, 3)).astype("float32")
    expected = {
        name: (1, -(-height // stride), -(-width // stride), channels)
        for name, stride, channels in [("res2", 4, 64), ("res3", 8, 128), ("res4", 16, 256), ("res5", 32, 512)]
    }
    assert {name: tuple(value.shape) for name, value in resnet18(images).items()} == expected
    assert resnet18.compute_output_shape(images.shape) == expected
    assert resnet18.compute_output_shape((None, None, None, 3))["res5"] == (None, None, None, 512)
    assert resnet18.feature_channels == {name: shape[-1] for name, shape in expected.items()}


def test_stem_pads_both_sides_alike(rng):
    """Mirroring the image mirrors the stem's first map where the size is odd; Keras' "same" does so too, but for an
    even size a 7x7/2 convolution must start three pixels outside, as PyTorch's."""
    convolution = ResNet(18).stem.convolutions[0]
    images = rng.standard_normal((1, 8, 8, 3)).astype("float32")
    output = np.asarray(convolution(images))
    padded = np.pad(images, ((0, 0), (3, 3), (3, 3), (0, 0)))
    kernel = np.asarray(convolution.kernel)
    for row, column in [(0, 0), (1, 2), (3, 3)]:
        patch = padded[0, 2 * row : 2 * row + 7, 2 * column : 2 * column + 7]
        by_hand = np.maximum(np.tensordot(patch, kernel, 3), 0) / np.sqrt(1 + 1e-5)
        np.testing.assert_allclose(output[0, row, column], by_hand, atol=1e-5)


def test_dynamic_shape_equals_eager(resnet18, rng):
    tf = pytest.importorskip("tensorflow")
    images = rng.standard_normal((2, 45, 70, 3)).astype("float32")
    dynamic = tf.function(resnet18, input_signature=[tf.TensorSpec((None, None, None, 3))])
    eager = resnet18(images)
    for name, value in dynamic(images).items():
        np.testing.assert_allclose(value, eager[name], atol=1e-5)


def test_jax_equals_tensorflow(resnet18, rng, assert_equal_on_jax):
    assert_equal_on_jax(resnet18, rng.standard_normal((2, 45, 70, 3)).astype("float32"))


def test_saves_and_loads(resnet18, rng, assert_saves_and_loads):
    assert_saves_and_loads(resnet18, rng.standard_normal((1, 40, 33, 3)).astype("float32"))


def test_config_round_trip():
    backbone = ResNet(**R101C, norm="batch", frozen_stages=2, dtype="mixed_bfloat16")
    again = ResNet.from_config(backbone.get_config())
    assert again.get_config() == backbone.get_config()
    assert again.multi_grid == (1, 2, 4)
    assert [block.dilation for block in again.res5.blocks] == [1, 2, 4]


def test_mixed_precision_is_close(resnet18, rng):
    images = rng.standard_normal((1, 64, 64, 3)).astype("float32")
    mixed = ResNet(18, dtype="mixed_bfloat16")
    mixed.build((None, None, None, 3))
    mixed.set_weights(resnet18.get_weights())
    for name, value in mixed(images).items():
        assert keras.backend.standardize_dtype(value.dtype) == "bfloat16"
        expected = np.asarray(resnet18(images)[name])
        difference = np.abs(np.asarray(keras.ops.cast(value, "float32")) - expected).max()
        assert difference < 0.03 * np.abs(expected).max()


def test_batch_norm_follows_the_training_flag(rng):
    backbone = ResNet(18, norm="batch", frozen_stages=1)
    images = rng.standard_normal((2, 64, 64, 3)).astype("float32")
    before = [np.asarray(v) for v in backbone(images, training=False) and backbone.non_trainable_variables]
    backbone(images, training=True)
    moved = {
        v.path: not np.array_equal(old, v) for v, old in zip(backbone.non_trainable_variables, before, strict=True)
    }
    assert not any(change for path, change in moved.items() if "/stem/" in path), "the frozen stem has moved"
    assert all(change for path, change in moved.items() if "moving_mean" in path and "/stem/" not in path)


def test_frozen_stages_are_not_trained():
    backbone = ResNet(18, frozen_stages=2)
    backbone.build((None, None, None, 3))
    assert {v.path.split("/")[1] for v in backbone.trainable_variables} == {"res3", "res4", "res5"}


def test_initialisation_keeps_the_fan_out_variance():
    backbone = ResNet(18, norm="batch")
    backbone.build((None, None, None, 3))
    kernel = np.asarray(backbone.res4.blocks[1].branch[0].kernel)
    np.testing.assert_allclose(kernel.std(), np.sqrt(2 / (9 * 256)), rtol=0.01)
    assert abs(kernel).max() > 3.5 * kernel.std(), "a truncated normal would end at about 2.3"


@pytest.mark.parametrize("dilation", [1, 4])
def test_gradient_reaches_every_kernel(dilation, rng):
    tf = pytest.importorskip("tensorflow")
    block = ResidualBlock(4, strides=1, dilation=dilation, bottleneck=True, norm="batch")
    images = tf.constant(rng.standard_normal((2, 9, 9, 3)), tf.float32)
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(block(images, training=True) ** 2)
    gradients = tape.gradient(loss, [v.value for v in block.trainable_variables])
    assert all(float(tf.reduce_max(tf.abs(gradient))) > 0 for gradient in gradients)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"depth": 77}, r"`depth` of a ResNet must be one of \(18, 34, 50, 101\). Received: depth=77"),
        ({"norm": "layer"}, r"`norm` of a ResNet must be one of .*Received: norm='layer'"),
        ({"stem": "wide"}, r"`stem` of a ResNet must be one of .*Received: stem='wide'"),
        ({"frozen_stages": 6}, r"`frozen_stages` of a ResNet must be one of .*Received: frozen_stages=6"),
        ({"multi_grid": (2, 2, 4)}, r"`multi_grid` must be three dilations, the first of them 1. Received"),
        ({"depth": 18, "multi_grid": (1, 2, 4)}, r"`multi_grid` needs a ResNet with bottleneck blocks"),
        ({"num_blocks": (1, 2)}, r"`num_blocks` must be four positive numbers, one per stage. Received: \(1, 2\)"),
        ({"depth": 18, "channels": (8, 8, 0, 8)}, r"`channels` must be four positive numbers, one per stage"),
        ({"channels": (8, 8, 10, 8)}, r"`channels` of a ResNet with bottleneck blocks must be multiples of 4"),
        ({"num_blocks": (1, 1, 1, 1), "multi_grid": (1, 2, 4)}, r"`multi_grid` gives the dilation of each res5 block"),
    ],
)
def test_bad_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        ResNet(**arguments)
