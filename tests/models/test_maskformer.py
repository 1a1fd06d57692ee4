from __future__ import annotations

import json

import keras
import numpy as np
import pytest
import tensorflow as tf

from kmaskformer.build import build_model
from kmaskformer.config import BackboneConfig, ModelConfig
from kmaskformer.losses.matcher import HungarianMatcher
from kmaskformer.losses.set_criterion import SetCriterion
from kmaskformer.models.maskformer import MaskFormer
from kmaskformer.structures import DatasetInfo
from kmaskformer.training.optimizer import AdamW

INFO = DatasetInfo("things", ("a", "b", "c", "d", "e"), thing_ids=(1, 3), ignore_value=65535)
JAX_SCRIPT = """
import json, jax, keras, numpy as np
import kmaskformer  # makes the classes known to Keras
assert keras.backend.backend() == "jax"
with open("{folder}/model.json") as file, keras.StatelessScope(initialize_variables=False):
    model = keras.saving.deserialize_keras_object(json.load(file))  # all values come from the other file
    model.build()
keras.utils.clear_session()  # forgets the weights that wait for a value
model.load_weights("{folder}/model.weights.h5")
weights = [[v.value for v in values] for values in (model.trainable_variables, model.non_trainable_variables)]
forward = jax.jit(lambda *arguments: model.stateless_call(*arguments)[0])
outputs = forward(*weights, dict(np.load("{folder}/inputs.npz")))
np.savez("{folder}/outputs.npz", *[np.asarray(output) for output in keras.tree.flatten(outputs)])
"""
TORCH_SCRIPT = """
import sys
sys.modules["tensorflow"] = None  # importing it fails, as where it is not installed
import json, keras, numpy as np, torch
import kmaskformer  # makes the classes known to Keras
assert keras.backend.backend() == "torch"
with open("{folder}/model.json") as file:
    model = keras.saving.deserialize_keras_object(json.load(file))
model.build()
model.load_weights("{folder}/model.weights.h5")
with torch.no_grad():
    outputs = model(dict(np.load("{folder}/inputs.npz")))
np.savez("{folder}/outputs.npz", *[keras.ops.convert_to_numpy(output) for output in keras.tree.flatten(outputs)])
"""
TRAIN_ON_SCRIPT = """
import keras, numpy as np
import kmaskformer  # makes the classes known to Keras
model = keras.models.load_model("{folder}/model.keras")
data = dict(np.load("{folder}/data.npz"))
inputs = {{key: data[key] for key in ("images", "image_sizes")}}
targets = {{key: data[key] for key in ("segment_map", "labels", "valid")}}
print(type(model).__name__, int(model.optimizer.iterations))
print(model.criterion.no_object_weight, model.dataset_info.name)
loss = model.train_step((inputs, targets))["loss"]
np.savez("{folder}/after.npz", loss, *[np.asarray(weight) for weight in model.weights])
"""


@pytest.fixture(scope="module")
def model(make_model):
    return make_model()


def flat(outputs):
    return [np.asarray(output) for output in keras.tree.flatten(outputs)]


def assert_equal(first, second, **tolerance):
    for a, b in zip(flat(first), flat(second), strict=True):
        np.testing.assert_allclose(a, b, **{"rtol": 0, "atol": 1e-4, **tolerance})


@pytest.mark.parametrize("size", [(45, 70), (64, 64), (1, 40), (33, 128)])
def test_output_shapes(model, rng, size):
    outputs = model(rng.integers(0, 256, (2, *size, 3), dtype="uint8"))
    height, width = model.padded_size(*size)
    assert (height % 32, width % 32) == (0, 0)
    assert set(outputs) == {"class_logits", "mask_logits", "aux_outputs"} and len(outputs["aux_outputs"]) == 1
    for layer in (outputs, *outputs["aux_outputs"]):
        assert layer["class_logits"].shape == (2, 7, 6)
        assert layer["mask_logits"].shape == (2, 7, height // 4, width // 4)
        assert all(np.isfinite(value).all() for value in flat([layer["class_logits"], layer["mask_logits"]]))


@pytest.mark.parametrize("backbone", [None, "resnet", "swin"])
@pytest.mark.parametrize("size", [(45, 70), (57, 33)])
def test_without_padding(make_model, rng, backbone, size):
    model = make_model(backbone=backbone, size_divisibility=0)
    assert model.padded_size(*size) == size
    outputs = model(rng.integers(0, 256, (1, *size, 3), dtype="uint8"))
    assert outputs["mask_logits"].shape == (1, 7, -(-size[0] // 4), -(-size[1] // 4))


def test_outputs_are_the_heads_applied_to_every_decoder_layer(model, images):
    features = model.backbone(model.preprocessing(images))
    pixels = np.asarray(model.pixel_decoder(features)["pixel_embedding"])
    layers = model.transformer_decoder(features["res5"])
    outputs = model(images)
    for queries, layer in zip(layers, [*outputs["aux_outputs"], outputs], strict=True):
        classes = np.asarray(queries) @ np.asarray(model.class_head.kernel) + np.asarray(model.class_head.bias)
        masks = np.einsum("bqc,bhwc->bqhw", np.asarray(model.mask_head(queries)), pixels)
        assert_equal([layer["class_logits"], layer["mask_logits"]], [classes, masks])


def test_without_deep_supervision(make_model, model, images):
    shallow = make_model(deep_supervision=False)
    shallow.set_weights(model.get_weights())
    outputs, expected = shallow(images), model(images)
    assert set(outputs) == {"class_logits", "mask_logits"}
    assert_equal([outputs["class_logits"], outputs["mask_logits"]], [expected["class_logits"], expected["mask_logits"]])


def test_dict_of_inputs_is_the_same_as_arguments(model, images):
    sizes = np.array([[40, 70], [45, 33]], "int32")
    expected = model(images, sizes)
    assert_equal(model({"images": images, "image_sizes": sizes}), expected, atol=0)
    assert_equal(model({"images": images}), model(images), atol=0)
    assert_equal(model({"images": images}, image_sizes=sizes), expected, atol=0)
    assert not np.allclose(expected["class_logits"], model(images)["class_logits"])


def test_predict(model, images):
    """Keras' own loop over batches puts them together again."""
    inputs = {"images": images, "image_sizes": np.array([[40, 70], [45, 33]], "int32")}
    assert_equal(model.predict(inputs, batch_size=1, verbose=0), model(inputs))


def test_bytes_and_floats_are_the_same(model, images):
    assert_equal(model(images.astype("float32")), model(images), atol=0)


def test_what_lies_outside_an_image_does_not_matter(model, images):
    """An image in the corner of a larger batch is the image padded with zeros after normalisation."""
    alone = model(images[:1, :40, :50])
    batched = model(images[:, :64, :64], np.array([[40, 50], [45, 64]], "int32"))
    for key in ("class_logits", "mask_logits"):
        assert_equal(batched[key][:1], alone[key])


def test_every_image_is_on_its_own(model, images):
    both = model(images)
    second = model(images[1:])
    assert_equal([both["class_logits"][1:], both["mask_logits"][1:]], [second["class_logits"], second["mask_logits"]])


def test_unknown_height_and_width(model, images):
    signature = {
        "images": tf.TensorSpec((None, None, None, 3), tf.uint8),
        "image_sizes": tf.TensorSpec((None, 2), tf.int32),
    }
    function = tf.function(model, input_signature=[signature])
    sizes = np.array([[40, 70], [45, 33]], "int32")
    for batch in (images, images[:, :33, :60]):
        sizes = np.minimum(sizes, batch.shape[1:3]).astype("int32")
        assert_equal(function({"images": batch, "image_sizes": sizes}), model(batch, sizes), atol=1e-3)


@pytest.mark.parametrize("name", ["res2", "res3", "res4", "res5"])
def test_in_feature(make_model, images, name):
    model = make_model(decoder={"in_feature": name})
    channels = model.backbone.compute_output_shape((None, None, None, 3))[name][-1]
    assert model.transformer_decoder.input_projection.kernel.shape == (1, 1, channels, 16)
    seen = model.transformer_decoder(model.backbone(model.preprocessing(images))[name])[-1]
    outputs = model(images)
    assert_equal(outputs["class_logits"], model.class_head(seen))


def test_transformer_encoder_as_in_feature(make_model, images):
    model = make_model(encoder_layers=1, decoder={"in_feature": "transformer_encoder"})
    decoded = model.pixel_decoder(model.backbone(model.preprocessing(images)))
    expected = model.class_head(model.transformer_decoder(decoded["transformer_encoder"])[-1])
    assert_equal(model(images)["class_logits"], expected)


def test_pixel_decoder_without_the_feature(make_model):
    with pytest.raises(
        ValueError,
        match="reads `transformer_encoder`, which neither the backbone nor the pixel decoder offers. "
        r"Received features: \['pixel_embedding', 'res2', 'res3', 'res4', 'res5'\]",
    ):
        make_model(decoder={"in_feature": "transformer_encoder"})


def test_heads_start_as_pytorch_linear_layers():
    model = build_model(ModelConfig(backbone=BackboneConfig("resnet18")))
    for variable in model.class_head.weights:
        values = np.asarray(variable)
        assert 0.95 / 16 < np.abs(values).max() <= 1.000001 / 16
        assert values.std() == pytest.approx(1 / 16 / np.sqrt(3), rel=0.15)


def test_number_of_classes():
    with pytest.raises(ValueError, match=r"`num_classes` must be a positive integer. Received: num_classes=0"):
        MaskFormer(None, None, None, num_classes=0)


def test_dataset_info_must_fit(make_model):
    model = make_model(dataset_info=INFO)
    model.dataset_info = INFO.to_dict()
    assert model.dataset_info == INFO
    with pytest.raises(ValueError, match=r"must describe the model's 5 classes. Received: 1 classes \(one\)"):
        model.dataset_info = DatasetInfo("one", ("a",))
    model.dataset_info = None
    assert model.dataset_info is None


@pytest.mark.parametrize("dtype", ["mixed_float16", "mixed_bfloat16"])
def test_mixed_precision(make_model, model, images, dtype):
    half = make_model(dtype=dtype)
    half.set_weights(model.get_weights())
    assert {variable.dtype for variable in half.weights} == {"float32"}
    outputs, expected = half(images), model(images)
    assert all(value.dtype == "float32" for value in flat(outputs))
    for actual, value in zip(flat(outputs), flat(expected), strict=True):
        error = np.abs(actual - value).max() / np.abs(value).max()
        assert error < (0.02 if dtype == "mixed_float16" else 0.1)


def test_paths_begin_with_the_parts(model):
    parts = ("backbone", "pixel_decoder", "transformer_decoder", "class_head", "mask_head")
    paths = [variable.path.split("/") for variable in model.weights]
    assert {path[0] for path in paths} == {"maskformer"} and {path[1] for path in paths} == set(parts)
    assert len({"/".join(path) for path in paths}) == len(paths)


def test_config_round_trip(make_model, images):
    options = {
        "size_divisibility": 0,
        "pixel_mean": (1.0, 2.0, 3.0),
        "pixel_std": (4.0, 5.0, 6.0),
        "deep_supervision": False,
        "dataset_info": INFO,
    }
    model = make_model(
        encoder_layers=1, decoder={"in_feature": "res4", "pre_norm": True, "encoder_layers": 1}, **options
    )
    config = json.loads(json.dumps(keras.saving.serialize_keras_object(model)))
    again = keras.saving.deserialize_keras_object(config)
    again.build()
    assert again.get_config() == model.get_config() and again.dataset_info == INFO
    assert [variable.path for variable in again.weights] == [variable.path for variable in model.weights]
    again.set_weights(model.get_weights())
    assert_equal(again(images), model(images), atol=0)


def training_data(images, targets):
    inputs = {"images": images, "image_sizes": np.array([[45, 70], [30, 40]], "int32")}
    return inputs, targets


def compiled_model(make_model, **options):
    model = make_model(dataset_info=INFO, **options)
    criterion = SetCriterion(no_object_weight=0.3, matcher=HungarianMatcher(cost_mask=7.0))
    model.compile(AdamW(learning_rate=1e-3, weight_decay=0.02, clip_norm=0.5), criterion)
    return model


def test_saved_model_trains_on(make_model, images, targets, tmp_path, run_script):
    """`.keras` keeps weights, configuration, criterion and the optimizer with its slots, into another process."""
    model = compiled_model(make_model, backbone="resnet")
    inputs, targets = training_data(images, targets)
    for _ in range(2):
        model.train_step((inputs, targets))
    model.save(tmp_path / "model.keras")
    np.savez(tmp_path / "data.npz", **inputs, **targets)

    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert loaded.get_config() == model.get_config()
    assert loaded.criterion.get_config() == model.criterion.get_config()
    assert loaded.optimizer.get_config() == model.optimizer.get_config()
    assert_equal(loaded(inputs), model(inputs), atol=0)
    slots = {variable.path: variable for variable in model.optimizer.variables}
    assert len(slots) > 2 * len(model.trainable_variables)
    assert {variable.path for variable in loaded.optimizer.variables} == set(slots)
    for variable in loaded.optimizer.variables:
        np.testing.assert_array_equal(variable, slots[variable.path])

    printed = run_script(TRAIN_ON_SCRIPT.format(folder=tmp_path))
    assert printed.split() == ["MaskFormer", "2", "0.3", "things"]
    loss = model.train_step((inputs, targets))["loss"]
    after = np.load(tmp_path / "after.npz")
    np.testing.assert_allclose(after["arr_0"], loss, rtol=1e-4)
    for index, weight in enumerate(model.weights, start=1):
        np.testing.assert_allclose(after[f"arr_{index}"], weight, rtol=0, atol=1e-4)


def test_model_that_was_not_compiled_can_be_saved(model, images, tmp_path):
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert_equal(loaded(images), model(images), atol=0)
    assert not loaded.compiled


def test_weights_file(make_model, model, images, tmp_path):
    model.save_weights(tmp_path / "model.weights.h5")
    other = make_model()
    assert not np.allclose(other(images)["class_logits"], model(images)["class_logits"])
    other.load_weights(tmp_path / "model.weights.h5")
    assert_equal(other(images), model(images), atol=0)


@pytest.fixture()
def assert_equal_on(request, tmp_path):
    """Runs a model on another backend, without TensorFlow, from the same `.weights.h5`, and compares."""

    def check(backend, model, inputs):
        model.save_weights(tmp_path / "model.weights.h5")
        (tmp_path / "model.json").write_text(json.dumps(keras.saving.serialize_keras_object(model)))
        np.savez(tmp_path / "inputs.npz", **inputs)
        if backend == "jax":
            request.getfixturevalue("run_on_jax")(JAX_SCRIPT.format(folder=tmp_path))
        else:
            pytest.importorskip("torch")
            request.getfixturevalue("run_script")(TORCH_SCRIPT.format(folder=tmp_path), KERAS_BACKEND="torch")
        outputs = np.load(tmp_path / "outputs.npz")
        expected = flat(model(inputs))
        assert len(outputs.files) == len(expected)
        for index, value in enumerate(expected):
            np.testing.assert_allclose(outputs[f"arr_{index}"], value, rtol=0, atol=1e-4 * np.abs(value).max())

    return check


OTHER_BACKENDS = ["jax", pytest.param("torch", marks=pytest.mark.parity)]


@pytest.mark.parametrize("backend", OTHER_BACKENDS)
def test_same_on_other_backends(backend, make_model, images, assert_equal_on):
    """The same `.weights.h5` gives the same numbers, with an encoder in the pixel decoder and a padded batch."""
    model = make_model(backbone="resnet", encoder_layers=1, decoder={"in_feature": "transformer_encoder"})
    inputs = {"images": images, "image_sizes": np.array([[45, 70], [30, 40]], "int32")}
    assert_equal_on(backend, model, inputs)


@pytest.mark.parametrize("backend", OTHER_BACKENDS)
def test_swin_same_on_other_backends(backend, make_model, images, assert_equal_on):
    model = make_model(backbone="swin", size_divisibility=0)
    assert_equal_on(backend, model, {"images": images})


@pytest.mark.slow
@pytest.mark.parametrize("backend", OTHER_BACKENDS)
@pytest.mark.parametrize("backbone", ["resnet50", "swin_tiny"])
def test_published_architecture_same_on_other_backends(backend, images, assert_equal_on, backbone):
    model = build_model(ModelConfig(num_classes=150, backbone=BackboneConfig(backbone)))
    assert_equal_on(backend, model, {"images": images})
