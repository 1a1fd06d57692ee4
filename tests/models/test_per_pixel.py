"""The per-pixel baselines: outputs, training, files, and everything that takes a MaskFormer too."""

from __future__ import annotations

import json

import keras
import numpy as np
import pytest
import tensorflow as tf

import kmaskformer
from kmaskformer.evaluation.evaluator import PanopticEvaluator, SemanticEvaluator
from kmaskformer.evaluation.run import evaluate
from kmaskformer.losses.per_pixel_criterion import PerPixelCriterion
from kmaskformer.models.per_pixel import PerPixelBaseline, PerPixelBaselinePlus
from kmaskformer.models.pixel_decoder import FPNPixelDecoder
from kmaskformer.models.transformer_decoder import QueryDecoder
from kmaskformer.segmenter import Segmenter
from kmaskformer.structures import DatasetInfo
from kmaskformer.training.optimizer import AdamW

KINDS = ("per_pixel", "per_pixel_plus")
INFO = DatasetInfo("things", ("a", "b", "c", "d", "e"), thing_ids=(1, 3))
JAX_SCRIPT = """
import sys
import json, jax, keras, numpy as np
sys.path.insert(0, "{tests}")
import conftest  # makes the backbone known to Keras
with open("{folder}/model.json") as file:
    model = keras.saving.deserialize_keras_object(json.load(file))
model.build()
model.load_weights("{folder}/model.weights.h5")
weights = [[v.value for v in values] for values in (model.trainable_variables, model.non_trainable_variables)]
forward = jax.jit(lambda *arguments: model.stateless_call(*arguments)[0])
outputs = forward(*weights, dict(np.load("{folder}/inputs.npz")))
np.savez("{folder}/outputs.npz", *[np.asarray(output) for output in keras.tree.flatten(outputs)])
"""


@pytest.fixture(scope="module", params=KINDS)
def kind(request):
    return request.param


@pytest.fixture(scope="module")
def model(make_baseline, kind):
    return make_baseline(kind)


@pytest.fixture()
def batch(images, targets):
    return {"images": images, "image_sizes": np.array([[45, 70], [30, 40]], "int32")}, targets


def flat(outputs):
    return [np.asarray(output) for output in keras.tree.flatten(outputs)]


def assert_equal(first, second, **tolerance):
    for a, b in zip(flat(first), flat(second), strict=True):
        np.testing.assert_allclose(a, b, **{"rtol": 0, "atol": 1e-5, **tolerance})


def test_public_names():
    assert kmaskformer.PerPixelBaseline is PerPixelBaseline
    assert kmaskformer.PerPixelBaselinePlus is PerPixelBaselinePlus


@pytest.mark.parametrize("size", [(45, 70), (64, 64), (1, 40)])
def test_output_shapes(model, kind, rng, size):
    outputs = model(rng.integers(0, 256, (2, *size, 3), dtype="uint8"))
    height, width = model.padded_size(*size)
    assert (height % 32, width % 32) == (0, 0)
    layers = [outputs, *outputs.get("aux_outputs", ())]
    assert len(layers) == (1 if kind == "per_pixel" else 2)
    for layer in layers:
        assert layer["logits"].shape == (2, height // 4, width // 4, 5)
        assert np.isfinite(np.asarray(layer["logits"])).all()


def test_without_padding(make_baseline, kind, rng):
    model = make_baseline(kind, size_divisibility=0)
    outputs = model(rng.integers(0, 256, (1, 57, 33, 3), dtype="uint8"))
    assert outputs["logits"].shape == (1, 15, 9, 5)


def test_a_linear_classifier_on_the_pixel_embedding(make_baseline, images):
    model = make_baseline("per_pixel")
    assert not np.asarray(model.classifier.bias).any()
    model.classifier.bias.assign([1.0, 2.0, 3.0, 4.0, 5.0])
    pixels = model.pixel_decoder(model.backbone(model.preprocessing(images)))["pixel_embedding"]
    expected = np.asarray(pixels) @ np.asarray(model.classifier.kernel)[0, 0] + [1, 2, 3, 4, 5]
    assert_equal(model(images), {"logits": expected})


def test_classifier_starts_as_the_reference_does(make_baseline):
    """He's normal initialisation over the fan-out: a variance of 2 / classes."""
    model = make_baseline("per_pixel", num_classes=500)
    assert np.std(model.classifier.kernel) == pytest.approx(np.sqrt(2 / 500), rel=0.02)


def test_a_logit_is_the_product_of_pixel_and_mask_embedding(make_baseline, images):
    model = make_baseline("per_pixel_plus")
    features = model.backbone(model.preprocessing(images))
    pixels = np.asarray(model.pixel_decoder(features)["pixel_embedding"])
    layers = model.transformer_decoder(features["res5"])
    outputs = model(images)
    for queries, layer in zip(layers, [*outputs["aux_outputs"], outputs], strict=True):
        expected = np.einsum("bqc,bhwc->bhwq", np.asarray(model.mask_head(queries)), pixels)
        np.testing.assert_allclose(layer["logits"], expected, rtol=0, atol=1e-5)
    shallow = make_baseline("per_pixel_plus", deep_supervision=False)
    shallow.set_weights(model.get_weights())
    assert_equal(shallow(images), {"logits": outputs["logits"]})


def test_what_lies_outside_an_image_does_not_matter(model, images):
    sizes = np.array([[45, 70], [30, 40]], "int32")
    other = images.copy()
    other[1, 30:], other[1, :, 40:] = 255, 255
    assert_equal(model(images, sizes), model({"images": other, "image_sizes": sizes}), atol=0)


def test_weights_are_named_after_the_parts_and_the_backbone_is_marked(model, kind):
    heads = {"classifier"} if kind == "per_pixel" else {"transformer_decoder", "mask_head"}
    paths = [variable.path.split("/") for variable in model.weights]
    assert {path[0] for path in paths} == {kind}
    assert {path[1] for path in paths} == {"backbone", "pixel_decoder", *heads}
    marked = [v.path for v in model.weights if getattr(v, "parameter_group", None) == "backbone"]
    assert marked == [path for path in map("/".join, paths) if path.split("/")[1] == "backbone"]


def test_half_precision_gives_float32_logits(make_baseline, kind, images):
    half, full = make_baseline(kind, dtype="mixed_bfloat16"), make_baseline(kind)
    half.set_weights(full.get_weights())
    outputs = half(images)
    assert all(value.dtype == tf.float32 for value in keras.tree.flatten(outputs))
    assert np.abs(outputs["logits"] - full(images)["logits"]).max() < 0.2 * np.abs(full(images)["logits"]).max()


def test_fit_learns_a_batch(make_baseline, kind, images):
    """The loss is the sum of the reported terms, and falls; the graph knows no size."""
    segment_map = np.full((2, 45, 70), -1, "int32")
    segment_map[:, :25], segment_map[0, 25:, :40], segment_map[1, 30:, 30:] = 0, 1, 1
    images = np.where(segment_map[..., None] == 0, 200, np.where(segment_map[..., None] == 1, 90, 20)) + images // 16
    targets = {"segment_map": segment_map, "labels": np.array([[1, 4], [1, 4]]), "valid": np.ones((2, 2), bool)}
    batch = {"images": images.astype("uint8")}, targets
    unknown = tf.nest.map_structure(lambda x: tf.TensorSpec([3 if n == 3 else None for n in x.shape], x.dtype), batch)
    dataset = tf.data.Dataset.from_generator(lambda: iter([batch] * 20), output_signature=unknown)
    dataset = dataset.apply(tf.data.experimental.assert_cardinality(20))
    keras.utils.set_random_seed(0)
    model = make_baseline(kind)
    model.compile(AdamW(learning_rate=3e-3, backbone_multiplier=1.0, clip_norm=1.0), PerPixelCriterion())
    first, before = float(model.test_step(batch)["loss"]), model.get_weights()
    history = model.fit(dataset, verbose=0).history
    terms = {"loss_sem_seg"} if kind == "per_pixel" else {"loss_sem_seg", "loss_sem_seg_0"}
    assert set(history) == {"loss", "gradient_norm", *terms}
    assert history["loss"][0] == pytest.approx(sum(history[term][0] for term in terms), rel=1e-5)
    for variable, value in zip(model.weights, before, strict=True):
        assert not np.array_equal(variable, value), variable.path
    model.reset_metrics()
    assert float(model.test_step(batch)["loss"]) < 0.5 * first
    # What it learned lies where the truth lies.
    predicted = Segmenter(model)(batch[0]["images"][0]).segmentation
    labelled = segment_map[0] >= 0
    assert (predicted == np.where(segment_map[0] == 0, 1, 4))[labelled].mean() > 0.9


def test_xla_gives_the_same_step(make_baseline, batch):
    model, compiled = make_baseline("per_pixel"), make_baseline("per_pixel")
    compiled.set_weights(model.get_weights())
    model.compile(keras.optimizers.SGD(1e-3), PerPixelCriterion())
    compiled.compile(keras.optimizers.SGD(1e-3), PerPixelCriterion(), jit_compile=True)
    expected = model.train_step(batch)
    history = compiled.fit(tf.data.Dataset.from_tensors(batch), verbose=0).history
    assert {name: value[0] for name, value in history.items()} == pytest.approx(
        {name: float(value) for name, value in expected.items()}, rel=1e-4
    )
    for weight, value in zip(compiled.weights, model.weights, strict=True):
        np.testing.assert_allclose(weight, value, rtol=0, atol=1e-4, err_msg=value.path)


def test_config_round_trip(make_baseline, kind, images):
    options = {"size_divisibility": 0, "pixel_mean": (1.0, 2.0, 3.0), "dataset_info": INFO}
    model = make_baseline(kind, **options, **({"deep_supervision": False} if kind == "per_pixel_plus" else {}))
    again = keras.saving.deserialize_keras_object(json.loads(json.dumps(keras.saving.serialize_keras_object(model))))
    again.build()
    assert type(again) is type(model)
    assert again.get_config() == model.get_config() and again.dataset_info == INFO
    assert [variable.path for variable in again.weights] == [variable.path for variable in model.weights]
    again.set_weights(model.get_weights())
    assert_equal(again(images), model(images), atol=0)


def test_saved_model_trains_on(make_baseline, kind, batch, tmp_path):
    model = make_baseline(kind, dataset_info=INFO)
    model.compile(AdamW(learning_rate=1e-3), PerPixelCriterion(weight=0.5))
    model.train_step(batch)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert loaded.criterion.get_config() == model.criterion.get_config()
    assert_equal(loaded(batch[0]), model(batch[0]), atol=0)
    expected, received = model.train_step(batch), loaded.train_step(batch)
    assert {k: float(v) for k, v in received.items()} == pytest.approx({k: float(v) for k, v in expected.items()})
    assert int(loaded.optimizer.iterations) == 2


@pytest.mark.slow
def test_same_on_jax(make_baseline, batch, tmp_path, run_on_jax, repository):
    model = make_baseline("per_pixel_plus")
    model.save_weights(tmp_path / "model.weights.h5")
    (tmp_path / "model.json").write_text(json.dumps(keras.saving.serialize_keras_object(model)))
    np.savez(tmp_path / "inputs.npz", **batch[0])
    script = JAX_SCRIPT.format(folder=tmp_path, tests=repository / "tests" / "models")
    run_on_jax(script)
    outputs = np.load(tmp_path / "outputs.npz")
    assert_equal([outputs[f"arr_{index}"] for index in range(len(outputs.files))], model(batch[0]), atol=1e-4)


def test_segmenter(model, images):
    result = Segmenter(model, dataset_info=INFO)(images[0])
    assert result.segmentation.shape == (45, 70) and result.segmentation.dtype == np.int32
    logits = np.asarray(model(images[:1])["logits"])
    full = np.asarray(tf.image.resize(logits, (64, 96)))[0, :45, :70]
    second, first = np.moveaxis(np.sort(full, axis=-1)[..., -2:], -1, 0)
    is_clear = first - second > 1e-3  # rounding decides the others
    assert is_clear.mean() > 0.9
    np.testing.assert_array_equal(result.segmentation[is_clear], np.argmax(full, axis=-1)[is_clear])
    assert {row["label"] for row in result.segments} <= set(INFO.class_names)


@pytest.mark.parametrize("task", ["instance", "panoptic"])
def test_segmenter_refuses_other_tasks(model, task):
    message = rf"A PerPixelBaseline\w* can do: semantic. Received: task='{task}'. Use a MaskFormer"
    with pytest.raises(ValueError, match=message):
        Segmenter(model, task=task, dataset_info=INFO)


def evaluation_batch(images):
    segment_map = np.full((2, 45, 70), -1, "int32")
    segment_map[:, :20], segment_map[:, 20:, 30:] = 0, 1
    return {"images": images}, {
        "segment_map": segment_map,
        "labels": np.array([[1, 4], [2, 0]], "int32"),
        "valid": np.ones((2, 2), bool),
        "is_crowd": np.zeros((2, 2), bool),
        "image_id": np.array([b"x", b"y"]),
        "original_size": np.array([[45, 70], [45, 70]], "int32"),
    }


@pytest.mark.parametrize("inference", ["default", "general"])
def test_evaluation_counts_what_the_segmenter_shows(make_baseline, images, inference):
    """Both kinds of inference and both orders of restoring are the same here: there is nothing to choose."""
    model = make_baseline("per_pixel", dataset_info=INFO)
    data = [evaluation_batch(images)]
    scores = evaluate(model, data, SemanticEvaluator(inference=inference, restore="masks"), progress=False)
    truth = np.array([[1, 4, -1], [2, 0, -1]])
    segment_map = data[0][1]["segment_map"]
    hits = total = 0
    for index in range(2):
        expected = truth[index][segment_map[index]]
        shown = Segmenter(model)(images[index]).segmentation
        hits += (shown == expected)[expected >= 0].sum()
        total += (expected >= 0).sum()
    assert scores["semantic/pACC"] == pytest.approx(hits / total, abs=2e-3)


def test_panoptic_evaluation_is_refused(make_baseline, images):
    model = make_baseline("per_pixel", dataset_info=INFO)
    message = "needs a model with `class_logits` among its outputs.*per-pixel models have semantic scores only"
    with pytest.warns(RuntimeWarning, match="left out"), pytest.raises(ValueError, match=message):
        evaluate(model, [evaluation_batch(images)], PanopticEvaluator(), progress=False)


def test_queries_must_be_classes(make_model):
    backbone, decoder = make_model().backbone, QueryDecoder(4, 16, 2, 24, decoder_layers=1)
    with pytest.raises(ValueError, match=r"one query per class. Received: num_queries=4, num_classes=5"):
        PerPixelBaselinePlus(backbone, FPNPixelDecoder(32, 24), decoder, num_classes=5)


@pytest.mark.parametrize("make", [PerPixelBaseline, PerPixelBaselinePlus])
def test_classes_must_be_positive(make):
    decoder = [QueryDecoder(4, 16, 2, 24)] if make is PerPixelBaselinePlus else []
    with pytest.raises(ValueError, match=r"`num_classes` must be a positive integer. Received: num_classes=0"):
        make(None, FPNPixelDecoder(32, 24), *decoder, num_classes=0)


def test_the_feature_of_the_decoder_must_exist(make_model):
    decoder = QueryDecoder(5, 16, 2, 24, decoder_layers=1, in_feature="transformer_encoder")
    model = PerPixelBaselinePlus(type(make_model().backbone)(), FPNPixelDecoder(32, 24), decoder, num_classes=5)
    with pytest.raises(ValueError, match=r"reads `transformer_encoder`, which neither the backbone nor"):
        model.build()
