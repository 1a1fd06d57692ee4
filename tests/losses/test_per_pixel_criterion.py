"""The per-pixel loss: hand numbers, a plain computation in float64, targets of all kinds, replicas and backends."""

from __future__ import annotations

import json

import keras
import numpy as np
import pytest
import tensorflow as tf

from kmaskformer.losses.per_pixel_criterion import PerPixelCriterion, target_class_map, upsampled_cross_entropy


def hand_case():
    """One feature pixel with probabilities 1/2, 1/4, 1/4; of its 16 pixels 8 are class 0, 4 class 1 and 4 nothing."""
    logits = np.log(np.array([0.5, 0.25, 0.25], "float32")).reshape(1, 1, 1, 3)
    segment_map = np.repeat([[1, 1, 0, -1]], 4, axis=0)[None].astype("int32")
    targets = {"segment_map": segment_map, "labels": np.array([[1, 0]], "int32"), "valid": np.ones((1, 2), bool)}
    return {"logits": logits}, targets


HAND_LOSS = (8 * np.log(2) + 4 * np.log(4)) / 12


def random_case(height=31, width=21, num_layers=3, seed=5):
    """Logits at stride 4 of three layers, and a batch of 4 images of which the third has no segment."""
    rng = np.random.default_rng(seed)
    shape = (4, -(-height // 4), -(-width // 4), 6)
    layers = [{"logits": rng.normal(size=shape, scale=3).astype("float32")} for _ in range(num_layers)]
    valid = np.array([[1, 1, 1, 1], [0, 1, 0, 1], [0, 0, 0, 0], [1, 1, 0, 1]], bool)
    blocks = rng.integers(-1, 4, (4, 12, 12)).repeat(3, 1).repeat(3, 2)[:, :height, :width]
    has_row = np.take_along_axis(valid, np.maximum(blocks, 0).reshape(4, -1), axis=1).reshape(blocks.shape)
    targets = {
        "segment_map": np.where(has_row, blocks, -1).astype("int32"),
        "labels": rng.integers(0, 6, (4, 4)).astype("int32"),
        "valid": valid,
    }
    return {**layers[0], "aux_outputs": layers[1:]}, targets


def class_map_of(targets):
    """By a loop over the segments."""
    class_map = np.full(targets["segment_map"].shape, -1)
    for image, row in zip(*np.nonzero(targets["valid"]), strict=True):
        class_map[image][targets["segment_map"][image] == row] = targets["labels"][image, row]
    return class_map


def plain_loss(logits, class_map):
    """Mean cross-entropy in float64: logits enlarged by 4, cut to the map."""
    logits = np.asarray(logits, np.float64)
    for axis in (1, 2):
        length = logits.shape[axis]
        positions = np.clip((np.arange(4 * length) + 0.5) / 4 - 0.5, 0, length - 1)
        matrix = np.maximum(1 - np.abs(positions[:, None] - np.arange(length)), 0)[: class_map.shape[axis]]
        logits = np.moveaxis(np.tensordot(matrix, logits, (1, axis)), 0, axis)
    log_probs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    nll = -np.take_along_axis(log_probs, np.maximum(class_map, 0)[..., None], axis=-1)[..., 0]
    return nll[class_map >= 0].mean()


def as_floats(terms):
    return {name: float(value) for name, value in terms.items()}


def test_hand_numbers():
    outputs, targets = hand_case()
    assert as_floats(PerPixelCriterion()(outputs, targets)) == pytest.approx({"loss_sem_seg": HAND_LOSS}, rel=1e-6)
    weighted = PerPixelCriterion(weight=2.5)(outputs, targets)
    assert as_floats(weighted) == pytest.approx({"loss_sem_seg": 2.5 * HAND_LOSS}, rel=1e-6)


@pytest.mark.parametrize("size", [(31, 21), (32, 24), (29, 21)])
def test_terms_of_every_layer_against_float64(size):
    """Also where the sides are no multiple of 4: the logits are enlarged by 4 and cut, not stretched to the size."""
    outputs, targets = random_case(*size)
    terms = as_floats(PerPixelCriterion()(outputs, targets))
    layers = [outputs, *outputs["aux_outputs"]]
    names = ("loss_sem_seg", "loss_sem_seg_0", "loss_sem_seg_1")
    class_map = class_map_of(targets)
    expected = {name: plain_loss(layer["logits"], class_map) for name, layer in zip(names, layers, strict=True)}
    assert list(terms) == list(names)
    assert terms == pytest.approx(expected, rel=1e-5)
    last = PerPixelCriterion(deep_supervision=False)(outputs, targets)
    assert as_floats(last) == pytest.approx({"loss_sem_seg": terms["loss_sem_seg"]}, rel=1e-6)


def test_gradient_of_the_small_logits():
    """Softmax minus truth at every labelled pixel, taken back to the small logits by the transposed resize."""
    outputs, targets = random_case(height=8, width=4, num_layers=1)
    class_map = class_map_of(targets)
    logits = tf.constant(outputs["logits"])
    with tf.GradientTape() as tape:
        tape.watch(logits)
        loss = upsampled_cross_entropy(logits, tf.constant(class_map, tf.int32))
    gradient = np.asarray(tape.gradient(loss, logits))
    probs = np.asarray(tf.nn.softmax(tf.image.resize(logits, (8, 4))))
    slope = np.where(class_map[..., None] >= 0, probs - (class_map[..., None] == np.arange(6)), 0.0)
    weights = np.maximum(1 - np.abs((np.arange(8)[:, None] - 1.5) / 4 - np.arange(2)), 0)
    weights[:2], weights[6:] = [1, 0], [0, 1]  # beyond the outer centres
    expected = np.einsum("byxc,yh->bhc", slope, weights)[:, :, None]
    np.testing.assert_allclose(gradient, expected, rtol=1e-4, atol=1e-5)
    assert not gradient[2].any()  # nothing is labelled there


def test_large_logits_stay_finite():
    _, targets = hand_case()
    far = {"logits": np.array([1e4, 0.0, -1e4], "float32").reshape(1, 1, 1, 3)}
    assert float(PerPixelCriterion()(far, targets)["loss_sem_seg"]) == pytest.approx(4e4 / 12, rel=1e-6)


def test_padding_of_images_and_table_counts_nothing():
    outputs, targets = random_case()
    expected = as_floats(PerPixelCriterion()(outputs, targets))
    padded = np.pad(targets["segment_map"], ((0, 0), (0, 1), (0, 3)), constant_values=-1)
    assert as_floats(PerPixelCriterion()(outputs, {**targets, "segment_map": padded})) == pytest.approx(expected)
    spoilt = {**targets, "labels": np.where(targets["valid"], targets["labels"], 77).astype("int32")}
    assert as_floats(PerPixelCriterion()(outputs, spoilt)) == pytest.approx(expected)
    # An image that the model padded by more than four pixels; the new logits lie over the padding.
    wide = keras.tree.map_structure(lambda x: np.pad(x, ((0, 0), (0, 2), (0, 1), (0, 0)), mode="edge"), outputs)
    assert as_floats(PerPixelCriterion()(wide, {**targets, "segment_map": padded})) == pytest.approx(expected, rel=1e-5)


def test_masks_are_as_good_as_a_segment_map():
    outputs, targets = random_case()
    masks = targets["segment_map"][:, None] == np.arange(4)[None, :, None, None]
    masks |= ~targets["valid"][..., None, None]  # the mask of a row that is not valid has no meaning
    by_masks = {"labels": targets["labels"], "valid": targets["valid"], "masks": masks}
    expected = as_floats(PerPixelCriterion()(outputs, targets))
    assert as_floats(PerPixelCriterion()(outputs, by_masks)) == pytest.approx(expected)


def test_class_map():
    targets = {
        "segment_map": np.array([[[0, 1, 2, -1]]]),
        "labels": np.array([[5, 3, 9]]),
        "valid": np.array([[True, True, False]]),
    }
    np.testing.assert_array_equal(target_class_map(targets), [[[5, 3, -1, -1]]])
    overlapping = np.array([[1, 1, 0, 0], [0, 1, 1, 0], [1, 1, 1, 0]], "uint8").reshape(1, 3, 1, 4)
    by_masks = {"masks": overlapping, "labels": targets["labels"], "valid": targets["valid"]}
    np.testing.assert_array_equal(target_class_map(by_masks), [[[5, 3, 3, -1]]])


@pytest.mark.parametrize("key", ["segment_map", "masks"])
def test_nothing_labelled_is_no_loss(key):
    outputs, targets = hand_case()
    empty = {"labels": np.zeros((1, 0), "int32"), "valid": np.zeros((1, 0), bool)}
    empty[key] = np.zeros((1, 0, 4, 4), bool) if key == "masks" else np.full((1, 4, 4), -1)
    for none in (empty, {**targets, "valid": np.zeros((1, 2), bool)}):
        assert as_floats(PerPixelCriterion()(outputs, none)) == {"loss_sem_seg": 0.0}


@pytest.mark.parametrize("jit", [False, True])
def test_graphs(jit):
    outputs, targets = random_case()
    criterion = PerPixelCriterion()
    compiled = tf.function(criterion, jit_compile=jit, autograph=False)(outputs, targets)
    assert as_floats(compiled) == pytest.approx(as_floats(criterion(outputs, targets)), rel=1e-5)


def test_sizes_known_only_at_run_time():
    outputs, targets = random_case(num_layers=1)
    spec = keras.tree.map_structure(lambda x: tf.TensorSpec([None] * x.ndim, x.dtype), targets)
    logits = tf.TensorSpec((None, None, None, 6), tf.float32)

    @tf.function(input_signature=[logits, spec], autograph=False)
    def dynamic(logits, targets):
        return PerPixelCriterion()({"logits": logits}, targets)

    result = dynamic(outputs["logits"], targets)
    assert as_floats(result) == pytest.approx(as_floats(PerPixelCriterion()(outputs, targets)), rel=1e-5)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_gives_float32(dtype):
    outputs, targets = random_case()
    half = keras.tree.map_structure(lambda value: tf.cast(value, dtype), outputs)
    rounded = keras.tree.map_structure(lambda value: tf.cast(value, tf.float32), half)
    terms = PerPixelCriterion()(half, targets)
    assert all(value.dtype == tf.float32 for value in terms.values())
    assert as_floats(terms) == pytest.approx(as_floats(PerPixelCriterion()(rounded, targets)), rel=1e-6)


def test_serialisation():
    criterion = PerPixelCriterion(5, 0.5, deep_supervision=False, ce_normalization="per_replica")
    config = json.loads(json.dumps(keras.saving.serialize_keras_object(criterion)))
    copy = keras.saving.deserialize_keras_object(config)
    assert isinstance(copy, PerPixelCriterion)
    assert copy.get_config() == criterion.get_config()
    assert (copy.num_classes, copy.weight, copy.deep_supervision, copy.supports_jit) == (5, 0.5, False, True)


def test_messages():
    outputs, targets = hand_case()
    with pytest.raises(ValueError, match=r"`weight` must not be negative. Received: weight=-1"):
        PerPixelCriterion(weight=-1)
    with pytest.raises(ValueError, match=r"one of .*'global', 'per_replica'.*Received: ce_normalization='local'"):
        PerPixelCriterion(ce_normalization="local")
    with pytest.raises(ValueError, match=r"must have num_classes=4 entries. Received: logits.shape=\(1, 1, 1, 3\)"):
        PerPixelCriterion(num_classes=4)(outputs, targets)
    with pytest.raises(ValueError, match=r"'labels' and 'valid'. Received: keys \['segment_map'\]"):
        PerPixelCriterion()(outputs, {"segment_map": targets["segment_map"]})
    with pytest.raises(ValueError, match=r"have 'logits'. Received: outputs \['class_logits'\].*with `SetCriterion`"):
        PerPixelCriterion()({"class_logits": 0}, targets)
    larger = {**targets, "segment_map": np.zeros((1, 9, 9))}
    with pytest.raises(ValueError, match=r"Targets must not be larger than the padded image"):
        PerPixelCriterion()({"logits": np.zeros((1, 2, 2, 3), "float32")}, larger)


REPLICAS_SCRIPT = """
import sys
import numpy as np
import tensorflow as tf
from kmaskformer.losses.per_pixel_criterion import PerPixelCriterion

cpu = tf.config.list_physical_devices("CPU")[0]
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
case = dict(np.load(sys.argv[1]))
results = {}
for mode in ("global", "per_replica"):
    criterion = PerPixelCriterion(ce_normalization=mode)

    def losses(half):
        rows = {key: tf.constant(value.reshape(2, 2, *value.shape[1:]))[half] for key, value in case.items()}
        logits = rows.pop("logits")
        with tf.GradientTape() as tape:
            tape.watch(logits)
            loss = criterion({"logits": logits}, rows)["loss_sem_seg"]
        return loss, tape.gradient(loss, logits)

    halves = strategy.experimental_distribute_values_from_function(lambda c: tf.constant(c.replica_id_in_sync_group))
    result = tf.function(lambda halves: strategy.run(losses, args=(halves,)))(halves)
    for name, value in zip(("loss", "gradient"), result):
        results[f"{mode}/{name}"] = np.array([v.numpy() for v in strategy.experimental_local_results(value)])
np.savez(sys.argv[2], **results)
"""

JAX_SCRIPT = """
import sys
import jax
import numpy as np
from kmaskformer.losses.per_pixel_criterion import PerPixelCriterion

case = dict(np.load(sys.argv[1]))

def total(logits):
    return PerPixelCriterion()({"logits": logits}, case)["loss_sem_seg"]

logits = case.pop("logits")
loss, gradient = jax.jit(jax.value_and_grad(total))(logits)
np.savez(sys.argv[2], loss=loss, eager=total(logits), gradient=gradient)
"""


def loss_and_gradient(case):
    logits = tf.constant(case["logits"])
    with tf.GradientTape() as tape:
        tape.watch(logits)
        loss = PerPixelCriterion()({"logits": logits}, case)["loss_sem_seg"]
    return float(loss), np.asarray(tape.gradient(loss, logits))


def flat_case():
    outputs, targets = random_case(num_layers=1)
    return {"logits": outputs["logits"], **targets}


def test_mean_over_two_replicas_is_the_global_loss(run_on_replicas):
    """Halves of a batch with quite different numbers of labelled pixels."""
    case = flat_case()
    result = run_on_replicas(REPLICAS_SCRIPT, case)
    loss, gradient = loss_and_gradient(case)
    assert result["global/loss"].mean() == pytest.approx(loss, rel=1e-5)
    np.testing.assert_allclose(result["global/gradient"].reshape(gradient.shape) / 2, gradient, rtol=1e-4, atol=1e-8)
    halves = [{key: value[rows] for key, value in case.items()} for rows in (slice(2), slice(2, 4))]
    local = [loss_and_gradient(half)[0] for half in halves]
    assert result["per_replica/loss"] == pytest.approx(local, rel=1e-5)
    assert np.mean(local) != pytest.approx(loss, rel=1e-3)


def test_jax_gives_the_same_without_tensorflow_installed(tmp_path, run_on_jax):
    case = flat_case()
    np.savez(tmp_path / "case.npz", **case)
    run_on_jax(JAX_SCRIPT, tmp_path / "case.npz", tmp_path / "result.npz")
    result = dict(np.load(tmp_path / "result.npz"))
    loss, gradient = loss_and_gradient(case)
    assert float(result["loss"]) == pytest.approx(loss, rel=1e-5)
    assert float(result["eager"]) == pytest.approx(loss, rel=1e-5)
    np.testing.assert_allclose(result["gradient"], gradient, rtol=1e-4, atol=1e-8)
