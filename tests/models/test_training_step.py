"""`compile` and `fit`: what one optimisation step does."""

from __future__ import annotations

import keras
import numpy as np
import pytest
import tensorflow as tf

from kmaskformer.backbones.resnet import ResNet
from kmaskformer.losses.matcher import HungarianMatcher
from kmaskformer.losses.set_criterion import SetCriterion
from kmaskformer.models.gradients import agree_on_finite
from kmaskformer.ops.masks import masks_from_segment_map
from kmaskformer.training.optimizer import SGD, AdamW

TERMS = {f"loss_{kind}{layer}" for kind in ("ce", "mask", "dice") for layer in ("", "_0")}


@pytest.fixture()
def batch(images, targets):
    return {"images": images, "image_sizes": np.array([[45, 70], [30, 40]], "int32")}, targets


@pytest.fixture()
def dataset(batch):
    return tf.data.Dataset.from_tensors(batch)


def test_step_is_gradient_descent_on_the_sum_of_the_terms(make_model, batch):
    model = make_model(backbone="swin")
    criterion = SetCriterion()
    with tf.GradientTape() as tape:
        terms = criterion(model(batch[0], training=True), model.pad_targets(batch[1]))
        total = sum(terms.values())
    gradients = tape.gradient(total, model.trainable_variables)
    pairs = zip(model.trainable_variables, gradients, strict=True)
    expected = [np.asarray(variable) - 0.01 * tf.convert_to_tensor(gradient) for variable, gradient in pairs]
    model.compile(keras.optimizers.SGD(0.01), criterion, run_eagerly=True)
    logs = model.train_step(batch)
    assert float(logs["loss"]) == pytest.approx(float(total), rel=1e-5)
    for variable, value in zip(model.trainable_variables, expected, strict=True):
        np.testing.assert_allclose(variable, value, rtol=1e-4, atol=1e-5, err_msg=variable.path)


def test_fit_learns_a_batch(make_model, images):
    """Twenty steps on two images of plain rectangles: every term is reported, the loss is their sum, and it falls.

    The graph knows no size, neither of the batch nor of the images nor of the table of segments.
    """
    segment_map = np.full((2, 45, 70), -1, "int32")
    segment_map[:, :25], segment_map[0, 25:, :40], segment_map[1, 30:, 30:] = 0, 1, 1
    images = np.where(segment_map[..., None] == 0, 200, np.where(segment_map[..., None] == 1, 90, 20)) + images // 16
    targets = {"segment_map": segment_map, "labels": np.array([[1, 4], [2, 0]]), "valid": np.ones((2, 2), bool)}
    batch = {"images": images.astype("uint8")}, targets
    unknown = tf.nest.map_structure(lambda x: tf.TensorSpec([3 if n == 3 else None for n in x.shape], x.dtype), batch)
    dataset = tf.data.Dataset.from_generator(lambda: iter([batch] * 20), output_signature=unknown)
    dataset = dataset.apply(tf.data.experimental.assert_cardinality(20))
    keras.utils.set_random_seed(0)
    model = make_model()
    model.compile(AdamW(learning_rate=3e-3, backbone_multiplier=1.0, clip_norm=1.0), SetCriterion())
    first, before = float(model.test_step(batch)["loss"]), model.get_weights()
    history = model.fit(dataset, verbose=0).history
    assert set(history) == {"loss", "gradient_norm", *TERMS}
    assert history["loss"][0] == pytest.approx(sum(history[term][0] for term in TERMS), rel=1e-5)
    assert int(model.optimizer.iterations) == 20
    for variable, value in zip(model.weights, before, strict=True):
        assert not np.array_equal(variable, value), variable.path
    model.reset_metrics()
    assert float(model.test_step(batch)["loss"]) < 0.5 * first


def test_evaluation_changes_nothing_and_has_no_dropout(make_model, batch, dataset):
    model = make_model(decoder={"dropout": 0.5})
    criterion = SetCriterion()
    model.compile("adamw", criterion)
    before = model.get_weights()
    losses = [model.evaluate(dataset, verbose=0, return_dict=True) for _ in range(2)]
    assert losses[0] == losses[1]
    for weight, value in zip(model.get_weights(), before, strict=True):
        np.testing.assert_array_equal(weight, value)
    terms = criterion(model(batch[0], training=False), model.pad_targets(batch[1]))
    assert losses[0]["loss"] == pytest.approx(float(sum(terms.values())), rel=1e-4)


def test_evaluation_gives_the_mean_loss_over_batches(make_model, batch):
    model = make_model()
    model.compile("adamw", SetCriterion())
    brighter = ({**batch[0], "images": batch[0]["images"] // 2}, batch[1]) if isinstance(batch[0], dict) else None
    brighter = brighter or (batch[0] // 2, batch[1])
    singles = []
    for one in (batch, brighter):
        model.reset_metrics()
        singles.append(float(model.test_step(one)["loss"]))
    model.reset_metrics()
    both = [float(model.test_step(one)["loss"]) for one in (batch, brighter)]
    assert singles[0] != singles[1]
    assert both[1] == pytest.approx(sum(singles) / 2, rel=1e-5)


def test_targets_are_padded_as_the_images(make_model, batch):
    model = make_model()
    padded = model.pad_targets(batch[1])["segment_map"]
    assert padded.shape == (2, 64, 96)
    np.testing.assert_array_equal(padded[:, :45, :70], batch[1]["segment_map"])
    assert (np.asarray(padded)[:, 45:] == -1).all() and (np.asarray(padded)[:, :, 70:] == -1).all()
    masks = {"masks": np.ones((2, 3, 45, 70), bool), "labels": 1}
    padded = np.asarray(model.pad_targets(masks)["masks"])
    assert padded.shape == (2, 3, 64, 96) and padded.sum() == 2 * 3 * 45 * 70
    same = make_model(size_divisibility=0).pad_targets(batch[1])["segment_map"]
    np.testing.assert_array_equal(same, batch[1]["segment_map"])


def test_masks_are_as_good_as_a_segment_map(make_model, batch):
    model = make_model()
    model.compile(keras.optimizers.SGD(0.0), SetCriterion(), run_eagerly=True)
    inputs, targets = batch
    masks = masks_from_segment_map(targets["segment_map"], 2)
    others = {"masks": masks, "labels": targets["labels"], "valid": targets["valid"]}
    expected = model.train_step((inputs, targets))
    for name, value in model.train_step((inputs, others)).items():
        assert float(value) == pytest.approx(float(expected[name]), rel=1e-5)


def test_mixed_precision_scales_the_loss(make_model, batch):
    model = make_model(dtype="mixed_float16")
    model.compile(AdamW(learning_rate=1e-3), SetCriterion())
    assert isinstance(model.optimizer, keras.optimizers.LossScaleOptimizer)
    model.compile(keras.optimizers.LossScaleOptimizer(AdamW(learning_rate=1e-3), initial_scale=16.0), SetCriterion())
    losses = [float(model.train_step(batch)["loss"]) for _ in range(3)]
    assert int(model.optimizer.iterations) == 3  # no step was skipped
    assert losses[2] < losses[0]
    assert {variable.dtype for variable in model.trainable_variables} == {"float32"}
    assert all(np.isfinite(weight).all() for weight in model.get_weights())


def test_loss_scaling_keeps_one_state_however_often_fit_is_called(make_model, batch, dataset, tmp_path):
    model = make_model(dtype="mixed_float16")
    model.compile(AdamW(learning_rate=1e-3), SetCriterion())
    for _ in range(2):
        model.fit(dataset, verbose=0)
    model.train_on_batch(*batch)
    names = [variable.name for variable in model.optimizer.variables]
    assert names.count("dynamic_scale") == names.count("step_counter") == 1
    model.optimizer.dynamic_scale.assign(512.0)
    model.save(tmp_path / "a.keras")
    loaded = keras.saving.load_model(tmp_path / "a.keras")
    assert float(loaded.optimizer.dynamic_scale) == 512.0
    for expected, value in zip(model.optimizer.variables, loaded.optimizer.variables, strict=True):
        np.testing.assert_array_equal(value, expected)


def test_an_update_that_loss_scaling_leaves_out_is_seen(make_model, batch):
    model = make_model(dtype="mixed_float16")
    optimizer = keras.optimizers.LossScaleOptimizer(AdamW(learning_rate=1e-3), initial_scale=16.0)
    model.compile(optimizer, SetCriterion())
    logs = model.train_step(batch)
    assert float(logs["gradient_norm"]) > 0 and float(logs["loss_scale"]) == 16.0
    optimizer.dynamic_scale.assign(2.0**100)  # gradients are infinite
    logs = model.train_step(batch)
    assert (float(logs["gradient_norm"]), float(logs["loss_scale"])) == (0.0, 2.0**99)
    assert int(optimizer.iterations) == 1


def test_trainable_norms_learn_their_statistics(make_model, images):
    model = make_model(backbone=ResNet(18, norm="batch"))
    means = [variable for variable in model.weights if variable.path.endswith("moving_mean")]
    model(images, training=False)
    assert len(means) == 20 and not any(np.asarray(mean).any() for mean in means)
    model(images, training=True)
    assert all(np.asarray(mean).any() for mean in means)


def test_xla(make_model, batch, dataset):
    """A step that XLA compiled gives the same loss and the same weights as one that runs operation by operation."""
    model, compiled = make_model(), make_model()
    compiled.set_weights(model.get_weights())
    model.compile(keras.optimizers.SGD(1e-3), SetCriterion())
    compiled.compile(keras.optimizers.SGD(1e-3), SetCriterion(), jit_compile=True)
    assert compiled.jit_compile
    expected = model.train_step(batch)
    history = compiled.fit(dataset, verbose=0).history
    assert set(history) == set(expected)
    for name, value in history.items():
        assert value[0] == pytest.approx(float(expected[name]), rel=1e-4), name
    for weight, value in zip(compiled.weights, model.weights, strict=True):
        np.testing.assert_allclose(weight, value, rtol=0, atol=1e-4, err_msg=value.path)


def test_xla_cannot_call_scipy(make_model):
    criterion = SetCriterion(matcher=HungarianMatcher(solver="scipy"))
    model = make_model()
    with pytest.raises(ValueError, match=r"`jit_compile=True` needs a criterion inside the graph.*jit_compile=False"):
        model.compile("adamw", criterion, jit_compile=True)
    model.compile("adamw", criterion)  # without XLA it may


def test_scipy_and_the_solver_in_the_graph_give_the_same_step(make_model, batch):
    model = make_model()
    losses = []
    for solver in ("in_graph", "scipy"):
        model.compile(keras.optimizers.SGD(0.0), SetCriterion(matcher=HungarianMatcher(solver=solver)))
        losses.append(float(model.train_step(batch)["loss"]))
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)


@pytest.mark.parametrize("action", ["fit", "evaluate"])
def test_a_criterion_is_needed(make_model, dataset, action):
    model = make_model()
    model.compile("adamw")
    with pytest.raises(ValueError, match=r"The model has no criterion. Call `model.compile"):
        getattr(model, action)(dataset, verbose=0)


def test_accumulation_gives_the_gradient_of_the_whole_batch(make_model, batch):
    """The two images have 2 and 1 segments, so that parts with denominators of their own would give another one."""
    steps = {}
    for parts in (1, 2):
        keras.utils.set_random_seed(0)
        model = make_model()
        # Without momentum and decay, the buffer is the clipped gradient.
        optimizer = SGD(0.1, weight_decay=0.0, momentum=0.0, clip_norm=0.1)
        model.compile(optimizer, SetCriterion(), accumulation_steps=parts, run_eagerly=True)
        optimizer.build(model.trainable_variables)
        steps[parts] = {name: float(value) for name, value in model.train_step(batch).items()}, optimizer._momentums
    (terms, gradient), (terms_of_parts, gradient_of_parts) = steps[1], steps[2]
    assert terms_of_parts == pytest.approx(terms, rel=1e-5)
    for one, other in zip(gradient, gradient_of_parts, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5 * 0.1)


def test_parts_must_be_of_one_size(make_model, batch):
    model = make_model()
    model.compile("adamw", SetCriterion(), accumulation_steps=3)
    with pytest.raises(ValueError, match=r"must divide the batch of each replica\. Received: 3 and 2 images"):
        model.train_step(batch)


def test_accumulation_needs_a_criterion_that_knows_its_denominators(make_model):
    with pytest.raises(ValueError, match=r"`accumulation_steps` must be .* accumulation_steps=2, criterion=function"):
        make_model().compile("adamw", lambda outputs, targets: {}, accumulation_steps=2)


@pytest.mark.parametrize("bad", ["loss", "gradient"])
def test_what_is_not_finite_shows_in_the_gradient(bad):
    loss = tf.constant(np.inf if bad == "loss" else 1.0)
    gradients = [None, tf.constant([1.0, np.nan if bad == "gradient" else 2.0]), tf.constant([3.0])]
    marked = agree_on_finite(loss, gradients, check_gradients=True)
    assert marked[0] is None and not np.isfinite(marked[1]).all()
    np.testing.assert_array_equal(marked[2], [3.0])
    np.testing.assert_array_equal(agree_on_finite(tf.constant(1.0), [tf.ones(2)], check_gradients=True)[0], np.ones(2))


def test_single_batches(make_model, batch):
    """`train_on_batch` and `test_on_batch` learn from and score one batch, without a dataset."""
    keras.utils.set_random_seed(0)
    model = make_model()
    model.compile(AdamW(learning_rate=1e-3), SetCriterion())
    before = model.test_on_batch(*batch, return_dict=True)["loss"]
    logs = [model.train_on_batch(*batch, return_dict=True) for _ in range(3)]
    assert set(logs[0]) == {"loss", "gradient_norm", *TERMS} and int(model.optimizer.iterations) == 3
    model.reset_metrics()
    assert model.test_on_batch(*batch, return_dict=True)["loss"] < before


def test_a_batch_is_a_pair(make_model, batch):
    model = make_model()
    model.compile(AdamW(learning_rate=1e-3), SetCriterion(), run_eagerly=True)
    images, targets = batch
    with pytest.raises(ValueError, match="Received: no targets"):
        model.train_on_batch(images)
    with pytest.raises(ValueError, match="Received: a sample weight"):
        model.train_on_batch(images, targets, sample_weight=np.ones(2))
