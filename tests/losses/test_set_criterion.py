"""The criterion: golden losses, denominators, padding, replicas and backends."""

from __future__ import annotations

import json

import keras
import numpy as np
import pytest
import tensorflow as tf

from kmaskformer.losses.matcher import HungarianMatcher
from kmaskformer.losses.set_criterion import SetCriterion, gather_queries, weighted_nll

TERMS = ("loss_ce", "loss_mask", "loss_dice")
GOLDEN_CASES = ("r50_ade20k150", "r50_6enc_coco_panoptic", "r101c_cityscapes19", "swin_t_ade20k150")


def toy():
    """The specification's toy case: three queries, segment A (top half, label 2) and B (right half, label 0)."""
    mask_logits = 2 * np.sin(5 * np.linspace(-2, 2, 48)).reshape(1, 3, 4, 4)
    class_logits = np.array([[[2, 0, -1, 0.5], [0, 1, 0, 1], [-1, 2, 1, 0]]], np.float32)
    masks = np.zeros((1, 2, 8, 8), bool)
    masks[0, 0, :4], masks[0, 1, :, 4:] = True, True
    outputs = {"class_logits": class_logits, "mask_logits": mask_logits.astype(np.float32)}
    return outputs, {"labels": np.array([[2, 0]], np.int32), "valid": np.ones((1, 2), bool), "masks": masks}


def random_case(num_queries=7, num_segments=4, batch=4, seed=5):
    """Three decoder layers, a batch whose images have 4, 2, 0 and 3 segments (not the first rows of the table)."""
    rng = np.random.default_rng(seed)
    valid = np.array([[1, 1, 1, 1], [0, 1, 0, 1], [0, 0, 0, 0], [1, 1, 0, 1]], bool)[:batch, :num_segments]
    layers = [
        {
            "class_logits": rng.normal(size=(batch, num_queries, 6)).astype(np.float32),
            "mask_logits": rng.normal(size=(batch, num_queries, 8, 6), scale=2).astype(np.float32),
        }
        for _ in range(3)
    ]
    blocks = rng.integers(-1, num_segments, (batch, 8, 6)).repeat(4, 1).repeat(4, 2)[:, :31, :21]
    has_row = np.take_along_axis(valid, np.maximum(blocks, 0).reshape(batch, -1), axis=1).reshape(blocks.shape)
    targets = {
        "segment_map": np.where(has_row, blocks, -1).astype(np.int32),
        "labels": rng.integers(0, 5, (batch, num_segments)).astype(np.int32),
        "valid": valid,
    }
    return {**layers[0], "aux_outputs": layers[1:]}, targets


def as_floats(terms):
    return {name: float(value) for name, value in terms.items()}


def assert_same_terms(terms, expected, rel=1e-5):
    assert list(terms) == list(expected)
    assert as_floats(terms) == pytest.approx(as_floats(expected), rel=rel, abs=1e-7)


def test_golden_toy():
    outputs, targets = toy()
    terms = as_floats(SetCriterion()(outputs, targets))
    assert terms["loss_ce"] == pytest.approx(0.89675248, abs=1e-6)
    assert terms["loss_mask"] / 20 == pytest.approx(0.28658408, abs=1e-6)
    assert terms["loss_dice"] == pytest.approx(0.59045637, abs=1e-6)
    assert sum(terms.values()) == pytest.approx(7.2188904, abs=5e-6)


def test_golden_toy_without_segments():
    outputs, targets = toy()
    nothing = {"labels": np.zeros((1, 0), np.int32), "valid": np.zeros((1, 0), bool), "masks": np.zeros((1, 0, 8, 8))}
    for empty in ({**targets, "valid": np.zeros((1, 2), bool)}, nothing):
        terms = as_floats(SetCriterion()(outputs, empty))
        assert terms["loss_ce"] == pytest.approx(1.76298249, abs=1e-6)
        assert (terms["loss_mask"], terms["loss_dice"]) == (0.0, 0.0)


def reference_total(outputs, targets, queries):
    """The loss of the toy case in float64 NumPy, upsampling by 2, for a given matching."""
    class_logits, mask_logits = (np.asarray(outputs[key], np.float64) for key in ("class_logits", "mask_logits"))
    classes = np.full(3, 3)
    classes[queries] = targets["labels"][0]
    log_probs = class_logits[0] - np.log(np.exp(class_logits[0]).sum(-1, keepdims=True))
    weights = np.where(classes == 3, 0.1, 1.0)
    total = -(weights * log_probs[np.arange(3), classes]).sum() / weights.sum()
    positions = np.clip((np.arange(8) + 0.5) / 2 - 0.5, 0, 3)
    resize = np.maximum(1 - np.abs(positions[:, None] - np.arange(4)), 0)
    for query, mask in zip(queries, targets["masks"][0].astype(float), strict=True):
        logits = resize @ mask_logits[0, query] @ resize.T
        probs = 1 / (1 + np.exp(-logits))
        right = probs * mask + (1 - probs) * (1 - mask)
        focal = (0.25 * mask + 0.75 * (1 - mask)) * (1 - right) ** 2 * -np.log(right)
        dice = 1 - (2 * (probs * mask).sum() + 1) / (probs.sum() + mask.sum() + 1)
        total += (20 * focal.mean() + dice) / 2
    return total


def test_gradient_against_a_numeric_one():
    outputs, targets = toy()
    variables = {key: tf.constant(value) for key, value in outputs.items()}
    with tf.GradientTape() as tape:
        tape.watch(variables)
        total = sum(SetCriterion()(variables, targets).values())
    gradients = tape.gradient(total, variables)
    assert float(total) == pytest.approx(reference_total(outputs, targets, [2, 0]), abs=1e-5)
    for key, value in outputs.items():
        for index in np.ndindex(value.shape):
            moved = [dict(outputs, **{key: value.astype(np.float64)}) for _ in range(2)]
            for case, step in zip(moved, (1e-5, -1e-5), strict=True):
                case[key][index] += step
            slope = (reference_total(moved[0], targets, [2, 0]) - reference_total(moved[1], targets, [2, 0])) / 2e-5
            assert float(gradients[key][index]) == pytest.approx(slope, abs=1e-6), (key, index)


def golden(shared_folder, case):
    folder = shared_folder / "golden" / f"maskformer_{case}"
    arrays, meta = np.load(folder / "arrays.npz"), json.loads((folder / "meta.json").read_text())
    height, width = meta["padded_pair_shape"][2:]
    num_segments = max(len(labels) for labels in meta["labels"])
    masks = np.zeros((2, num_segments, height, width), np.uint8)
    labels, valid = np.zeros((2, num_segments), np.int32), np.zeros((2, num_segments), bool)
    for index in range(2):
        truth = arrays[f"gt{index}/masks"]
        masks[index, : len(truth), : truth.shape[1], : truth.shape[2]] = truth
        labels[index, : len(truth)], valid[index, : len(truth)] = arrays[f"gt{index}/labels"], True
    outputs = {"class_logits": arrays["pair/pred_logits"], "mask_logits": arrays["pair/pred_masks"]}
    return outputs, {"labels": labels, "valid": valid, "masks": masks}, arrays, meta


@pytest.mark.parametrize("case", GOLDEN_CASES)
def test_golden_cases(shared_folder, case):
    outputs, targets, arrays, meta = golden(shared_folder, case)
    queries = np.asarray(HungarianMatcher()(outputs, targets))
    for index in range(2):
        expected = np.full(queries.shape[1], -1)
        expected[arrays[f"match/final/img{index}/target"]] = arrays[f"match/final/img{index}/query"]
        np.testing.assert_array_equal(queries[index], expected)
    terms = as_floats(SetCriterion(num_classes=outputs["class_logits"].shape[-1] - 1)(outputs, targets))
    assert terms == pytest.approx({name: meta["losses_weighted"][name] for name in TERMS}, rel=1e-5)


@pytest.mark.parametrize("case", GOLDEN_CASES[:1])
def test_golden_case_with_unpadded_targets(shared_folder, case):
    """The criterion pads the targets itself where the model padded the images."""
    outputs, targets, _, meta = golden(shared_folder, case)
    height, width = np.max(meta["sizes"], axis=0)
    cut = {**targets, "masks": targets["masks"][:, :, :height, :width]}
    assert_same_terms(SetCriterion()(outputs, cut), SetCriterion()(outputs, targets))


def test_terms_of_earlier_layers():
    outputs, targets = random_case()
    criterion = SetCriterion(weights={"loss_dice": 3.0})
    terms = criterion(outputs, targets)
    assert list(terms) == [f"{name}{suffix}" for suffix in ("", "_0", "_1") for name in TERMS]
    for suffix, layer in zip(("_0", "_1"), outputs["aux_outputs"], strict=True):
        alone = {f"{name}{suffix}": value for name, value in criterion(layer, targets).items()}
        assert_same_terms({name: terms[name] for name in alone}, alone)
    last = {key: outputs[key] for key in ("class_logits", "mask_logits")}
    assert_same_terms(SetCriterion(deep_supervision=False)(outputs, targets), SetCriterion()(last, targets))
    unweighted = SetCriterion(weights=dict.fromkeys(TERMS, 1.0))(outputs, targets)
    assert float(terms["loss_dice"]) == pytest.approx(3 * float(unweighted["loss_dice"]), rel=1e-6)
    assert float(terms["loss_mask_1"]) == pytest.approx(20 * float(unweighted["loss_mask_1"]), rel=1e-6)


def test_segment_map_and_masks_give_the_same():
    outputs, targets = random_case()
    masks = targets["segment_map"][:, None] == np.arange(4)[None, :, None, None]
    by_masks = {"labels": targets["labels"], "valid": targets["valid"], "masks": masks}
    assert_same_terms(SetCriterion()(outputs, by_masks), SetCriterion()(outputs, targets))


def test_padding_of_the_table_counts_nothing():
    outputs, targets = random_case()
    masks = targets["segment_map"][:, None] == np.arange(4)[None, :, None, None]
    expected = SetCriterion()(outputs, targets)
    invalid = ~targets["valid"]
    spoilt = {
        "labels": np.where(invalid, 77, targets["labels"]).astype(np.int32),
        "valid": targets["valid"],
        "masks": masks | invalid[:, :, None, None],
    }
    assert_same_terms(SetCriterion()(outputs, spoilt), expected)
    wider = {
        "labels": np.pad(targets["labels"], ((0, 0), (0, 5))),
        "valid": np.pad(targets["valid"], ((0, 0), (0, 5))),
        "segment_map": targets["segment_map"],
    }
    assert_same_terms(SetCriterion()(outputs, wider), expected)


def test_images_are_summed_and_divided_once():
    outputs, targets = random_case()
    criterion = SetCriterion(deep_supervision=False)
    whole = as_floats(criterion(outputs, targets))
    sums = dict.fromkeys(TERMS, 0.0)
    for image in range(4):
        part = {key: outputs[key][image : image + 1] for key in ("class_logits", "mask_logits")}
        truth = {key: value[image : image + 1] for key, value in targets.items()}
        num_segments = int(truth["valid"].sum())
        terms = as_floats(criterion(part, truth))
        sums["loss_ce"] += terms["loss_ce"] * (num_segments + 0.1 * (7 - num_segments))
        sums["loss_mask"] += terms["loss_mask"] * max(num_segments, 1)
        sums["loss_dice"] += terms["loss_dice"] * max(num_segments, 1)
    expected = {"loss_ce": sums["loss_ce"] / (9 + 0.1 * 19), **{key: sums[key] / 9 for key in TERMS[1:]}}
    assert whole == pytest.approx(expected, rel=1e-5)


def test_parts_of_a_batch_with_common_normalizers_add_up():
    outputs, targets = random_case()
    criterion = SetCriterion()
    common = criterion.normalizers(targets, 7)
    assert (float(common.num_masks), float(common.class_weight)) == pytest.approx((9.0, 9 + 0.1 * 19))
    parts = []
    for rows in (slice(0, 2), slice(2, 4)):
        part, truth = keras.tree.map_structure(lambda value, rows=rows: value[rows], (outputs, targets))
        parts.append(as_floats(criterion(part, truth, common)))
    assert_same_terms({name: parts[0][name] + parts[1][name] for name in parts[0]}, criterion(outputs, targets))


def test_more_segments_than_queries():
    outputs, targets = random_case(num_queries=2)
    terms = as_floats(SetCriterion()(outputs, targets))
    assert np.isfinite(list(terms.values())).all()
    common = SetCriterion().normalizers(targets, 2)
    assert float(common.num_masks) == 9.0
    assert float(common.class_weight) == pytest.approx(6 + 0.1 * 2)


@pytest.mark.parametrize("jit", [False, True])
def test_graphs(jit):
    outputs, targets = random_case()
    criterion = SetCriterion()
    compiled = tf.function(criterion, jit_compile=jit, autograph=False)(outputs, targets)
    assert_same_terms(compiled, {name: criterion(outputs, targets)[name] for name in compiled})


def test_sizes_known_only_at_run_time():
    outputs, targets = random_case()
    outputs = {key: outputs[key] for key in ("class_logits", "mask_logits")}
    spec = keras.tree.map_structure(
        lambda value: tf.TensorSpec([None] * (value.ndim - 1) + [6 if value.ndim == 3 else None], value.dtype),
        (outputs, {key: targets[key] for key in ("labels", "valid")}),
    )
    map_spec = tf.TensorSpec((None, None, None), tf.int32)

    @tf.function(input_signature=[spec[0], {**spec[1], "segment_map": map_spec}], autograph=False)
    def dynamic(outputs, targets):
        return SetCriterion()(outputs, targets)

    result = dynamic(outputs, targets)
    assert_same_terms({name: result[name] for name in TERMS}, SetCriterion()(outputs, targets))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_gives_float32(dtype):
    outputs, targets = random_case()
    half = keras.tree.map_structure(lambda value: tf.cast(value, dtype), outputs)
    rounded = keras.tree.map_structure(lambda value: tf.cast(value, tf.float32), half)
    terms = SetCriterion()(half, targets)
    assert all(value.dtype == tf.float32 for value in terms.values())
    assert_same_terms(terms, SetCriterion()(rounded, targets))


def test_a_gradient_for_every_layer_and_none_for_what_is_not_matched():
    outputs, targets = random_case()
    outputs = keras.tree.map_structure(tf.constant, outputs)
    with tf.GradientTape() as tape:
        tape.watch(outputs)
        total = sum(SetCriterion()(outputs, targets).values())
    queries = SetCriterion().matcher(outputs, targets)
    gradients = tape.gradient(total, outputs)
    for layer in (gradients, *gradients["aux_outputs"]):
        assert np.all(np.abs(layer["class_logits"]).sum((1, 2)) > 0)
    touched = np.abs(gradients["mask_logits"]).sum((2, 3)) > 0
    for image in range(4):
        assert set(np.flatnonzero(touched[image])) == {int(query) for query in queries[image] if query >= 0}


@pytest.mark.parametrize("normalization", ["global", "per_replica"])
def test_a_weight_of_zero_and_no_segments_are_a_loss_of_zero(normalization):
    logits, masks = tf.Variable(tf.random.normal((2, 3, 4), seed=1)), tf.zeros((2, 3, 4, 4))
    targets = {
        "labels": np.zeros((2, 1), np.int32),
        "valid": np.zeros((2, 1), bool),
        "segment_map": np.full((2, 16, 16), -1, np.int32),
    }
    criterion = SetCriterion(no_object_weight=0.0, ce_normalization=normalization)
    with tf.GradientTape() as tape:
        terms = criterion({"class_logits": logits, "mask_logits": masks}, targets)
        total = sum(terms.values())
    assert as_floats(terms)["loss_ce"] == 0.0
    np.testing.assert_array_equal(tape.gradient(total, logits), np.zeros((2, 3, 4), np.float32))


def test_serialisation():
    criterion = SetCriterion(
        5, {"loss_mask": 2.0}, 0.3, HungarianMatcher(2, 3, 4), deep_supervision=False, ce_normalization="per_replica"
    )
    config = json.loads(json.dumps(keras.saving.serialize_keras_object(criterion)))
    copy = keras.saving.deserialize_keras_object(config)
    assert isinstance(copy, SetCriterion)
    assert copy.get_config() == criterion.get_config()
    assert copy.matcher.get_config() == criterion.matcher.get_config()
    assert SetCriterion.from_config(criterion.get_config()).weights == criterion.weights
    assert criterion.supports_jit and not SetCriterion(matcher=HungarianMatcher(solver="scipy")).supports_jit


def test_weighted_nll_by_hand():
    logits = np.log(np.array([[[0.5, 0.25, 0.25], [0.1, 0.2, 0.7]]], np.float32))
    nll = weighted_nll(logits, np.array([[-1, 0]], np.int32), np.array([[9, 1]], np.int32), 0.1)
    np.testing.assert_allclose(nll, [[-np.log(0.25), -0.1 * np.log(0.7)]], rtol=1e-6)


def test_gather_queries():
    values = np.arange(12).reshape(2, 3, 2)
    queries = np.array([[2, -1], [0, 1]], np.int32)
    np.testing.assert_array_equal(gather_queries(values, queries), [[[4, 5], [0, 1]], [[6, 7], [8, 9]]])


def test_messages():
    outputs, targets = toy()
    with pytest.raises(ValueError, match=r"`weights` may name \['loss_ce', .*Received: \['loss_focal'\]"):
        SetCriterion(weights={"loss_focal": 1.0})
    with pytest.raises(ValueError, match=r"must not be negative. Received: weights=\{'loss_ce': -1\}"):
        SetCriterion(weights={"loss_ce": -1})
    with pytest.raises(ValueError, match=r"one of .*'global', 'per_replica'.*Received: ce_normalization='local'"):
        SetCriterion(ce_normalization="local")
    with pytest.raises(ValueError, match=r"must have 5 entries: num_classes=4 and no-object.*\(1, 3, 4\)"):
        SetCriterion(num_classes=4)(outputs, targets)
    with pytest.raises(ValueError, match=r"'labels' and 'valid'. Received: keys \['masks'\]"):
        SetCriterion()(outputs, {"masks": targets["masks"]})


REPLICAS_SCRIPT = """
import sys
import numpy as np
import tensorflow as tf
from kmaskformer.losses.set_criterion import SetCriterion

cpu = tf.config.list_physical_devices("CPU")[0]
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
case = dict(np.load(sys.argv[1]))
results = {}
for mode in ("global", "per_replica"):
    criterion = SetCriterion(ce_normalization=mode)

    def losses(half):
        rows = {key: tf.constant(value.reshape(2, 2, *value.shape[1:]))[half] for key, value in case.items()}
        outputs = {key: rows.pop(key) for key in ("class_logits", "mask_logits")}
        return criterion(outputs, rows)

    halves = strategy.experimental_distribute_values_from_function(lambda c: tf.constant(c.replica_id_in_sync_group))
    terms = tf.function(lambda halves: strategy.run(losses, args=(halves,)))(halves)
    for name, value in terms.items():
        results[f"{mode}/{name}"] = np.array([float(v) for v in strategy.experimental_local_results(value)])
np.savez(sys.argv[2], **results)
"""

JAX_SCRIPT = """
import sys
import jax
import numpy as np
from kmaskformer.losses.matcher import HungarianMatcher
from kmaskformer.losses.set_criterion import SetCriterion

case = dict(np.load(sys.argv[1]))
outputs = {key: case.pop(key) for key in ("class_logits", "mask_logits")}

def total(outputs):
    terms = SetCriterion()(outputs, case)
    return sum(terms.values()), terms

(_, terms), gradients = jax.jit(jax.value_and_grad(total, has_aux=True))(outputs)
queries = jax.jit(lambda outputs: HungarianMatcher()(outputs, case))(outputs)
on_host = jax.jit(lambda outputs: HungarianMatcher(solver="scipy")(outputs, case))(outputs)
eager = {f"eager/{name}": value for name, value in SetCriterion()(outputs, case).items()}
gradients = {f"gradient/{name}": value for name, value in gradients.items()}
np.savez(sys.argv[2], queries=queries, on_host=on_host, **terms, **eager, **gradients)
"""


def flat_case():
    outputs, targets = random_case()
    return {**{key: outputs[key] for key in ("class_logits", "mask_logits")}, **targets}


def test_mean_over_two_replicas_is_the_global_loss(run_on_replicas):
    case = flat_case()
    result = run_on_replicas(REPLICAS_SCRIPT, case)
    outputs = {key: case[key] for key in ("class_logits", "mask_logits")}
    expected = as_floats(SetCriterion()(outputs, case))
    means = {name: float(result[f"global/{name}"].mean()) for name in TERMS}
    assert means == pytest.approx(expected, rel=1e-5)
    local = [
        float(SetCriterion()(*keras.tree.map_structure(lambda v, rows=rows: v[rows], (outputs, case)))["loss_ce"])
        for rows in (slice(0, 2), slice(2, 4))
    ]
    assert result["per_replica/loss_ce"] == pytest.approx(local, rel=1e-5)
    assert result["per_replica/loss_mask"] == pytest.approx(result["global/loss_mask"], rel=1e-6)


def test_jax_gives_the_same_without_tensorflow_installed(tmp_path, run_on_jax):
    case = flat_case()
    np.savez(tmp_path / "case.npz", **case)
    run_on_jax(JAX_SCRIPT, tmp_path / "case.npz", tmp_path / "result.npz")
    result = dict(np.load(tmp_path / "result.npz"))
    outputs = {key: tf.constant(case[key]) for key in ("class_logits", "mask_logits")}
    with tf.GradientTape() as tape:
        tape.watch(outputs)
        terms = SetCriterion()(outputs, case)
        total = sum(terms.values())
    np.testing.assert_array_equal(result["queries"], HungarianMatcher()(outputs, case))
    np.testing.assert_array_equal(result["on_host"], result["queries"])
    for name, value in terms.items():
        assert float(result[name]) == pytest.approx(float(value), rel=1e-5)
        assert float(result[f"eager/{name}"]) == pytest.approx(float(value), rel=1e-5)
    for name, gradient in tape.gradient(total, outputs).items():
        np.testing.assert_allclose(result[f"gradient/{name}"], gradient, atol=1e-7, rtol=1e-4)
