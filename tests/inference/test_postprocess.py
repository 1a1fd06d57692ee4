"""The callable from outputs to results: options, defaults and equality with its parts; graph, XLA and JAX."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf
from keras import ops

from kmaskformer.inference.general import general_instances, general_semantic
from kmaskformer.inference.instance import instance_inference
from kmaskformer.inference.pairs import best_classes, select_queries
from kmaskformer.inference.panoptic import panoptic_inference
from kmaskformer.inference.postprocess import Postprocess
from kmaskformer.inference.restore import restore_mask_logits
from kmaskformer.inference.semantic import semantic_inference, semantic_map

SIZES = ((16, 24), (13, 22), (19, 30))
THINGS = (0, 2)


def make_outputs(seed: int = 0, batch: int = 2):
    rng = np.random.default_rng(seed)
    class_logits = np.float32(rng.normal(size=(batch, 6, 5)) * 4)
    return {"class_logits": class_logits, "mask_logits": np.float32(rng.normal(size=(batch, 6, 4, 6)) * 6)}


def numbers(results):
    return {key: ops.convert_to_numpy(value) for key, value in results.items()}


def assert_same(first, second):
    first, second = numbers(first), numbers(second)
    assert first.keys() == second.keys()
    for key, value in first.items():
        assert value.dtype == second[key].dtype, key
        np.testing.assert_allclose(value, second[key], atol=1e-6, err_msg=key)


def test_each_task_is_its_function():
    outputs = make_outputs()
    logits = (outputs["class_logits"], restore_mask_logits(outputs["mask_logits"], *SIZES))
    options = {"thing_ids": THINGS}

    semantic = Postprocess("semantic", before_inference=True)(outputs, *SIZES)
    expected = semantic_map(semantic_inference(*outputs.values(), *SIZES, before_inference=True))
    assert_same(semantic, dict(zip(("class_map", "confidence"), expected, strict=True)))
    assert_same(Postprocess("panoptic", **options)(outputs, *SIZES), panoptic_inference(*logits, THINGS, 0.8, 0.8))
    assert_same(Postprocess("instance", **options)(outputs, *SIZES), instance_inference(*logits, THINGS))
    general = {"inference": "general", **options}
    assert_same(Postprocess("panoptic", **general)(outputs, *SIZES), panoptic_inference(*logits, THINGS, None, None))
    expected = general_instances(*logits, THINGS, score_threshold=0.5)
    assert_same(Postprocess("instance", **general)(outputs, *SIZES), expected)
    expected = dict(zip(("class_map", "confidence"), general_semantic(*logits), strict=True))
    assert_same(Postprocess("semantic", **general)(outputs, *SIZES), expected)


def test_thresholds_given_hold_for_both_kinds_of_inference():
    outputs = make_outputs()
    limits = {"thing_ids": THINGS, "object_mask_threshold": 0.6, "overlap_threshold": 0.4}
    default = Postprocess("panoptic", **limits)(outputs, *SIZES)
    assert_same(default, Postprocess("panoptic", "general", **limits)(outputs, *SIZES))


@pytest.mark.parametrize("inference", ["default", "general"])
@pytest.mark.parametrize("task", ["semantic", "panoptic", "instance"])
def test_dropping_queries_changes_no_segment(task, inference):
    compared = 0
    for seed in range(4):
        outputs = make_outputs(seed, batch=1)
        full = numbers(Postprocess(task, inference, THINGS)(outputs, *SIZES))
        short = numbers(Postprocess(task, inference, THINGS, drop_queries=True)(outputs, *SIZES))
        for key in full.keys() - {"valid", "query_ids"}:
            first, second = full[key], short[key]
            if "valid" in full and key != "panoptic_map":
                first, second = first[full["valid"]], second[short["valid"]]
            np.testing.assert_allclose(second, first, atol=1e-6, err_msg=key)
            compared += first.size
    assert compared > 0


def test_selection_keeps_one_query_where_none_is_kept():
    outputs = make_outputs(batch=1)
    class_logits, masks = select_queries(*outputs.values(), np.zeros((1, 6), bool))
    assert class_logits.shape == (1, 1, 5) and masks.shape == (1, 1, 4, 6)
    kept = best_classes(outputs["class_logits"])[2]
    selected = ops.convert_to_numpy(select_queries(*outputs.values(), kept)[0])
    np.testing.assert_array_equal(selected, outputs["class_logits"][:, ops.convert_to_numpy(kept)[0]])


def test_pixel_models_have_semantic_results_only():
    logits = np.zeros((1, 4, 6, 3), "float32")
    logits[..., 2] = 1
    results = numbers(Postprocess("semantic")({"logits": logits}, *SIZES))
    assert (results["class_map"] == 2).all() and results["class_map"].shape == (1, 19, 30)
    np.testing.assert_allclose(results["confidence"], np.e / (np.e + 2), atol=1e-6)
    with pytest.raises(ValueError, match="its only task is"):
        Postprocess("panoptic")({"logits": logits}, *SIZES)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"task": "depth"}, "`task` must be one of semantic, instance, panoptic. Received: task='depth'"),
        ({"inference": "greedy"}, "`inference` must be one of default, general. Received: inference='greedy'"),
        ({"overlap_threshold": 80}, r"`overlap_threshold` must lie in 0..1. Received: overlap_threshold=80"),
    ],
)
def test_options_that_do_not_exist_are_errors(options, message):
    with pytest.raises(ValueError) as error:
        Postprocess(**options)
    assert message in str(error.value)


@pytest.mark.parametrize("inference", ["default", "general"])
@pytest.mark.parametrize("task", ["semantic", "panoptic", "instance"])
def test_one_graph_serves_all_sizes(task, inference):
    postprocess = Postprocess(task, inference, THINGS)
    size = tf.TensorSpec((2,), tf.int32)
    spec = {
        "class_logits": tf.TensorSpec((None, None, 5), tf.float32),
        "mask_logits": tf.TensorSpec((None, None, None, None), tf.float32),
    }
    graph = tf.function(postprocess.__call__, input_signature=(spec, size, size, size))
    for seed, output_size in enumerate([(19, 30), (13, 22), (5, 41)]):
        outputs, sizes = make_outputs(seed), (*SIZES[:2], output_size)
        tensors = [tf.constant(size) for size in sizes]
        assert_same(graph(outputs, *tensors), postprocess(outputs, *sizes))
    assert graph.experimental_get_tracing_count() == 1


def test_compiles_under_xla():
    tasks = {task: Postprocess(task, "default", THINGS) for task in ("semantic", "panoptic", "instance")}
    outputs = make_outputs()
    compiled = tf.function(
        lambda outputs: {task: postprocess(outputs, *SIZES) for task, postprocess in tasks.items()}, jit_compile=True
    )(outputs)
    for task, postprocess in tasks.items():
        assert_same(compiled[task], postprocess(outputs, *SIZES))


JAX_PROGRAM = """
import sys, jax, numpy as np
from kmaskformer.inference.postprocess import Postprocess
data = dict(np.load(sys.argv[1]))
outputs = {key: data[key] for key in ("class_logits", "mask_logits")}
sizes = ((16, 24), (13, 22), (19, 30))
tasks = {
    f"{task}/{inference}": Postprocess(task, inference, (0, 2))
    for task in ("semantic", "panoptic", "instance") for inference in ("default", "general")
}
run = jax.jit(lambda outputs: {name: postprocess(outputs, *sizes) for name, postprocess in tasks.items()})
for name, results in run(outputs).items():
    for key, value in results.items():
        expected = data[f"{name}/{key}"]
        np.testing.assert_allclose(np.asarray(value), expected, atol=1e-5, err_msg=f"{name} {key}")
        assert value.dtype == expected.dtype, (name, key, value.dtype)
one = {key: value[:1] for key, value in outputs.items()}
eager = Postprocess("panoptic", "default", (0, 2), drop_queries=True)(one, *sizes)
np.testing.assert_array_equal(np.asarray(eager["panoptic_map"]), data["panoptic/default/panoptic_map"][:1])
print("equal")
"""


def test_jax_gives_the_same(tmp_path, run_on_jax):
    outputs = make_outputs()
    arrays = dict(outputs)
    for task in ("semantic", "panoptic", "instance"):
        for inference in ("default", "general"):
            results = numbers(Postprocess(task, inference, THINGS)(outputs, *SIZES))
            arrays.update({f"{task}/{inference}/{key}": value for key, value in results.items()})
    np.savez(tmp_path / "expected.npz", **arrays)
    assert run_on_jax(JAX_PROGRAM, tmp_path / "expected.npz") == "equal\n"
