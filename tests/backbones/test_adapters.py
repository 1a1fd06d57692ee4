import sys

import keras
import numpy as np
import pytest

from kmaskformer.backbones.adapters import IMAGENET_MEAN, IMAGENET_STD, KerasModelBackbone, keras_cv_backbone


def pyramid(first_strides: int = 4, head: bool = True, size: int | None = None) -> keras.Model:
    """A small convolutional classifier with named feature maps of strides 4, 8, 16, 32."""
    x = inputs = keras.Input((size, size, 3), name="images")
    for index, strides in enumerate((first_strides, 2, 2, 2), start=1):
        x = keras.layers.Conv2D(4 * index, 3, strides, padding="same", name=f"stage{index}_conv")(x)
        x = keras.layers.BatchNormalization(name=f"stage{index}_norm")(x)
        x = keras.layers.ReLU(name=f"stage{index}_out")(x)
    if head:
        x = keras.layers.Dense(7, name="classifier")(keras.layers.GlobalAveragePooling2D(name="pool")(x))
    return keras.Model(inputs, x, name="toy")


LEVELS = tuple(f"stage{index}_out" for index in (1, 2, 3, 4))


@pytest.fixture()
def images(rng):
    return rng.standard_normal((2, 64, 96, 3)).astype("float32")


def assert_features(backbone: KerasModelBackbone, images: np.ndarray, channels: tuple[int, ...]) -> None:
    features = backbone(images)
    expected = {
        name: (2, 64 // stride, 96 // stride, depth)
        for name, stride, depth in zip(("res2", "res3", "res4", "res5"), (4, 8, 16, 32), channels, strict=True)
    }
    assert {name: tuple(value.shape) for name, value in features.items()} == expected
    assert backbone.compute_output_shape(images.shape) == expected
    assert tuple(backbone.feature_channels.values()) == channels


def test_named_layers_of_a_plain_model(images, assert_saves_and_loads):
    model = pyramid()
    backbone = KerasModelBackbone(model, outputs=LEVELS)
    assert_features(backbone, images, (4, 8, 12, 16))
    np.testing.assert_array_equal(
        backbone(images)["res3"], keras.Model(model.input, model.get_layer(LEVELS[1]).output)(images)
    )
    assert not [v.path for v in backbone.variables if "classifier" in v.path], "the head must not be part of it"
    assert_saves_and_loads(backbone, images)


def test_outputs_of_a_plain_model_in_any_order(images):
    model = pyramid()
    maps = [model.get_layer(name).output for name in reversed(LEVELS)]
    backbone = KerasModelBackbone(keras.Model(model.input, [model.output, *maps]))
    assert_features(backbone, images, (4, 8, 12, 16))


def test_subclassed_model(images):
    class Subclassed(keras.Model):
        def __init__(self):
            super().__init__()
            model = pyramid()
            self.inner = keras.Model(model.input, {name: model.get_layer(name).output for name in LEVELS})

        def call(self, inputs):
            return self.inner(inputs)

    assert_features(KerasModelBackbone(Subclassed()), images, (4, 8, 12, 16))


def test_pyramid_outputs_as_keras_hub_has_them(images):
    model = pyramid(head=False)
    model.pyramid_outputs = {f"P{index + 1}": model.get_layer(f"stage{index}_out").output for index in (1, 2, 3, 4)}
    assert_features(KerasModelBackbone(model), images, (4, 8, 12, 16))


def test_levels_are_chosen_by_stride_not_by_name(images):
    """KerasCV calls the stride-4 level P2 in one backbone and P1 in another."""
    model = pyramid(head=False)
    model.pyramid_level_inputs = {f"P{index}": f"stage{index}_out" for index in (1, 2, 3, 4)}
    assert_features(KerasModelBackbone(model), images, (4, 8, 12, 16))


@pytest.mark.parametrize(
    ("input_scaling", "expected"),
    [
        ("bytes", lambda raw: raw),
        ("unit", lambda raw: raw / 255),
        ("symmetric", lambda raw: raw / 127.5 - 1),
        ("imagenet", lambda raw: (raw - IMAGENET_MEAN) / IMAGENET_STD),
    ],
)
def test_input_scaling_gives_the_model_what_it_was_trained_on(input_scaling, expected, rng):
    raw = rng.uniform(0, 255, (1, 32, 32, 3))
    normalised = ((raw - IMAGENET_MEAN) / IMAGENET_STD).astype("float32")
    backbone = KerasModelBackbone(pyramid(), outputs=LEVELS, input_scaling=input_scaling)
    np.testing.assert_allclose(backbone._rescale(keras.ops.array(normalised)), expected(raw), rtol=1e-5, atol=1e-4)
    assert KerasModelBackbone.from_config(backbone.get_config()).input_scaling == input_scaling


def test_training_flag_reaches_the_model(images):
    backbone = KerasModelBackbone(pyramid(), outputs=LEVELS)
    before = [np.asarray(v) for v in backbone.non_trainable_variables]
    backbone(images, training=False)
    assert all(np.array_equal(old, v) for old, v in zip(before, backbone.non_trainable_variables, strict=True))
    backbone(images, training=True)
    assert not any(np.array_equal(old, v) for old, v in zip(before, backbone.non_trainable_variables, strict=True))


def test_dynamic_shape_equals_eager(images):
    tf = pytest.importorskip("tensorflow")
    backbone = KerasModelBackbone(pyramid(), outputs=LEVELS, input_scaling="unit")
    dynamic = tf.function(backbone, input_signature=[tf.TensorSpec((None, None, None, 3))])
    for name, value in dynamic(images).items():
        np.testing.assert_allclose(value, backbone(images)[name], atol=1e-5)


def test_fixed_input_size(rng):
    backbone = KerasModelBackbone(pyramid(size=72), outputs=LEVELS)
    shapes = {name: tuple(value.shape[1:3]) for name, value in backbone(np.zeros((1, 72, 72, 3), "float32")).items()}
    assert shapes == {"res2": (18, 18), "res3": (9, 9), "res4": (5, 5), "res5": (3, 3)}


def test_missing_stride_is_named():
    message = r"strides \(4, 8, 16, 32\). Received: model 'toy' with strides \[8, 16, 32\], missing: \[4\]. Name layers"
    with pytest.raises(ValueError, match=message):
        KerasModelBackbone(pyramid(first_strides=8), outputs=LEVELS)


def test_model_without_feature_maps():
    with pytest.raises(ValueError, match=r"with strides \[\], missing: \[4, 8, 16, 32\]"):
        KerasModelBackbone(pyramid())


def test_several_inputs_are_refused():
    inputs = [keras.Input((8, 8, 3)), keras.Input((8, 8, 3))]
    model = keras.Model(inputs, keras.layers.add(inputs), name="two")
    with pytest.raises(ValueError, match=r"`model` must have one input.*Received: model 'two' with 2 inputs"):
        KerasModelBackbone(model)


def test_unknown_input_scaling():
    with pytest.raises(ValueError, match=r"`input_scaling` must be one of .*Received: input_scaling='torch'"):
        KerasModelBackbone(pyramid(), outputs=LEVELS, input_scaling="torch")


def test_keras_cv_is_imported_only_when_asked_for(monkeypatch):
    monkeypatch.setitem(sys.modules, "keras_cv", None)
    KerasModelBackbone(pyramid(), outputs=LEVELS)
    with pytest.raises(ImportError, match=r"ResNetV2Backbone needs keras_cv, .*install\.sh keras-cv"):
        keras_cv_backbone("ResNetV2Backbone")


@pytest.mark.parametrize(("include_rescaling", "input_scaling"), [(False, "unit"), (True, "bytes")])
def test_keras_cv_resnet(include_rescaling, input_scaling, images, assert_saves_and_loads):
    pytest.importorskip("keras_cv", reason="KerasCV is not installed (extra keras-cv)")
    backbone = keras_cv_backbone(
        "ResNetV2Backbone",
        stackwise_filters=[8, 16, 24, 32],
        stackwise_blocks=[2, 2, 2, 2],
        stackwise_strides=[1, 2, 2, 2],
        include_rescaling=include_rescaling,
        input_shape=(None, None, 3),
    )
    assert backbone.input_scaling == input_scaling
    assert_features(backbone, images, (32, 64, 96, 128))
    assert_saves_and_loads(backbone, images)


def test_unknown_keras_cv_backbone():
    pytest.importorskip("keras_cv", reason="KerasCV is not installed (extra keras-cv)")
    with pytest.raises(
        ValueError, match=r"must be a backbone of KerasCV, one of \[.*'ResNetV2Backbone'.*Received: 'X'"
    ):
        keras_cv_backbone("X")
