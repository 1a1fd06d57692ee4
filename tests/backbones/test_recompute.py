"""Blocks that are computed again in the backward pass have the same gradients, random depth included."""

from __future__ import annotations

import keras
import numpy as np
import pytest

from kmaskformer.backbones.resnet import ResNet
from kmaskformer.backbones.swin import SwinTransformer
from kmaskformer.layers.convolution import Convolution

tf = pytest.importorskip("tensorflow")

SWIN = {"embed_dim": 8, "depths": (1, 2, 1, 1), "num_heads": (1, 1, 2, 2), "window_size": 4, "drop_path_rate": 0.5}
RESNET = {"depth": 18, "num_blocks": (1, 1, 1, 1), "channels": (8, 8, 12, 16), "stem_channels": 8}
BACKBONES = {"swin": (SwinTransformer, SWIN), "resnet": (ResNet, RESNET)}


def gradients(kind: str, images: np.ndarray, jit_compile: bool, **options) -> tuple[list, list]:
    """Features, and the gradient of a fixed random projection of them, for one seed.

    Not of the sum of their squares: of normalised features that hardly changes, and its gradient is rounding noise.
    """
    keras.utils.set_random_seed(4)
    make, arguments = BACKBONES[kind]
    backbone = make(**arguments, **options)
    backbone.build((None, None, None, 3))

    @tf.function(jit_compile=jit_compile)
    def step(images):
        with tf.GradientTape() as tape:
            features = backbone(images, training=True)
            loss = sum(
                tf.reduce_sum(tf.cast(feature, "float32") * tf.random.stateless_normal(tf.shape(feature), (1, index)))
                for index, feature in enumerate(features.values())
            )
        # Some are sparse: those of the tables of position biases.
        return features, [tf.convert_to_tensor(one) for one in tape.gradient(loss, backbone.trainable_variables)]

    features, found = step(tf.constant(images))
    return list(features.values()), found


@pytest.mark.parametrize("jit_compile", [False, pytest.param(True, marks=pytest.mark.slow)])
@pytest.mark.parametrize("kind", ["swin", "resnet"])
def test_gradients_are_the_same(kind, jit_compile, rng):
    images = rng.normal(size=(4, 32, 32, 3)).astype("float32")
    (kept, expected), (again, received) = (
        gradients(kind, images, jit_compile, recompute=recompute) for recompute in (False, True)
    )
    for one, other in zip([*kept, *expected], [*again, *received], strict=True):
        scale = np.abs(one).max() + 1e-12
        np.testing.assert_allclose(other / scale, one / scale, atol=1e-5)


@pytest.mark.parametrize("kind", ["swin", "resnet"])
def test_the_second_time_is_the_first_in_half_precision(kind, rng):
    """The second computation is outside of Keras' call, where weights are not cast and `training` is not known."""
    images = rng.normal(size=(2, 32, 32, 3)).astype("float32")
    (kept, expected), (again, received) = (
        gradients(kind, images, False, recompute=recompute, dtype="mixed_bfloat16") for recompute in (False, True)
    )
    for one, other in zip([*kept, *expected], [*again, *received], strict=True):
        one, other = (np.asarray(tf.cast(x, "float32"), np.float64) for x in (one, other))
        assert np.linalg.norm(other - one) <= 1e-2 * np.linalg.norm(one) + 1e-6


def test_frozen_norms_stay_outside_of_kernels_the_second_time(monkeypatch, rng):
    monkeypatch.setattr(Convolution, "_folded", lambda layer: pytest.fail("folded in training"))
    gradients("resnet", rng.normal(size=(1, 32, 32, 3)).astype("float32"), False, recompute=True)


def test_what_would_differ_the_second_time_is_refused():
    with pytest.raises(ValueError, match=r"`recompute` needs drop_rate=0 and attention_drop_rate=0.*drop_rate=0\.1"):
        SwinTransformer(**SWIN, recompute=True, drop_rate=0.1)
    with pytest.raises(ValueError, match='`recompute` needs norm="frozen"'):
        ResNet(18, norm="batch", recompute=True)


@pytest.mark.parametrize("kind", ["swin", "resnet"])
def test_the_choice_is_saved(kind):
    make, arguments = BACKBONES[kind]
    assert make.from_config(make(**arguments, recompute=True).get_config()).recompute
