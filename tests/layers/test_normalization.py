import keras
import numpy as np
import pytest

from kmaskformer.layers.normalization import FrozenBatchNormalization, make_norm


def assign_vectors(layer: FrozenBatchNormalization, rng: np.random.Generator) -> dict[str, np.ndarray]:
    layer.build((None, None, None, 5))
    vectors = {name: rng.uniform(0.5, 3.0, 5) for name in ("scale", "offset", "mean", "variance")}
    for name, value in vectors.items():
        getattr(layer, name).assign(value)
    return vectors


def test_frozen_norm_computes_with_its_constants(rng):
    layer = FrozenBatchNormalization()
    vectors = assign_vectors(layer, rng)
    x = rng.standard_normal((2, 3, 4, 5)).astype("float32")
    expected = (x - vectors["mean"]) / np.sqrt(vectors["variance"] + 1e-5) * vectors["scale"] + vectors["offset"]
    for training in (False, True):
        np.testing.assert_allclose(layer(x, training=training), expected, rtol=1e-5, atol=1e-5)
    assert layer.trainable_variables == []
    assert [v.path.split("/")[-1] for v in layer.non_trainable_variables] == ["scale", "offset", "mean", "variance"]


def test_frozen_norm_starts_as_identity(rng):
    x = rng.standard_normal((2, 5)).astype("float32")
    np.testing.assert_allclose(FrozenBatchNormalization()(x), x, rtol=1e-5)


def test_frozen_norm_has_no_trainable_weight_even_when_made_trainable():
    layer = FrozenBatchNormalization()
    layer.build((None, 5))
    layer.trainable = True
    assert layer.trainable_variables == []


def test_frozen_norm_survives_a_large_mean_in_half_precision(rng):
    """With bfloat16 constants, 300.25 would be 300 and the result wrong by 0.25."""
    layer = FrozenBatchNormalization(dtype="mixed_bfloat16")
    layer.build((None, 5))
    layer.mean.assign(np.full(5, 300.25))
    x = np.full((1, 5), 300.0, "float32")
    outputs = layer(x)
    assert keras.backend.standardize_dtype(outputs.dtype) == "bfloat16"
    np.testing.assert_allclose(keras.ops.cast(outputs, "float32"), -0.25, rtol=0.01)


def test_frozen_norm_config_round_trip():
    layer = FrozenBatchNormalization(epsilon=1e-3, name="norm")
    again = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(layer))
    assert again.get_config() == layer.get_config() and again.epsilon == 1e-3


def test_group_norm_equals_its_definition(rng):
    x = rng.standard_normal((2, 3, 4, 64)).astype("float32") * 0.01 + 5
    groups = x.astype("float64").reshape(2, 12, 32, 2)
    mean, variance = groups.mean((1, 3), keepdims=True), groups.var((1, 3), keepdims=True)
    expected = ((groups - mean) / np.sqrt(variance + 1e-5)).reshape(x.shape)
    np.testing.assert_allclose(make_norm("group", "norm")(x), expected, atol=2e-3)
    np.testing.assert_allclose(make_norm("group", "norm")(x - 5), expected, atol=1e-4)


def test_group_norm_is_exact_on_a_large_map(rng):
    """A sum of 200 thousand numbers one after the other would be off by 1e-4, as Keras' own layer is."""
    x = (rng.standard_normal((1, 160, 160, 64)) + 5 * rng.standard_normal(64)).astype("float32")
    groups = x.astype("float64").reshape(1, -1, 8, 8)
    mean, variance = groups.mean((1, 3), keepdims=True), groups.var((1, 3), keepdims=True)
    expected = ((groups - mean) / np.sqrt(variance + 1e-5)).reshape(x.shape)
    np.testing.assert_allclose(make_norm("group", "norm", groups=8)(x), expected, rtol=0, atol=5e-6)


def test_layer_norm_equals_its_definition(rng):
    x = rng.standard_normal((2, 3, 4, 6)).astype("float32") * 0.01
    expected = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5)
    np.testing.assert_allclose(make_norm("layer", "norm")(x), expected, atol=1e-5)


def test_batch_norm_moves_by_a_tenth(rng):
    layer = make_norm("batch", "norm")
    x = rng.standard_normal((4, 5, 6)).astype("float32") + 3
    layer(x, training=True)
    np.testing.assert_allclose(layer.moving_mean, 0.1 * x.mean((0, 1)), rtol=1e-4)
    assert layer.epsilon == 1e-5 and len(layer.trainable_variables) == 2


@pytest.mark.parametrize("kind", ["frozen", "batch", "group", "layer"])
def test_every_kind_has_the_name_and_epsilon(kind):
    layer = make_norm(kind, name="norm")
    assert (layer.name, layer.epsilon) == ("norm", 1e-5)


def test_options_override_the_defaults():
    assert make_norm("group", "norm", groups=4, epsilon=1e-3).get_config()["groups"] == 4
    assert make_norm("batch", "norm", momentum=0.99).momentum == 0.99


def test_unknown_kind_is_named():
    with pytest.raises(
        ValueError, match=r"must be one of \('frozen', 'batch', 'group', 'layer'\). Received: kind='GN'"
    ):
        make_norm("GN", "norm")


@pytest.mark.parametrize(
    "options",
    [{"dtype": "float64"}, {"center": False}, {"scale": False}, {"axis": 1}, {"axis": (1, 2, 3)}],
    ids=["float64", "no offset", "no scale", "another axis", "several axes"],
)
@pytest.mark.parametrize("training", [False, True])
def test_layer_norm_has_the_options_of_keras(options, training, rng):
    x = rng.standard_normal((2, 4, 5, 6)) + 1000
    layer, expected = make_norm("layer", "norm", **options), keras.layers.LayerNormalization(epsilon=1e-5, **options)
    np.testing.assert_allclose(layer(x, training=training), expected(x), rtol=1e-12)
