"""Two replicas, uneven batches: the scores of one device."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

pytest.importorskip("tensorflow")

SCRIPT = """
import math
import tensorflow as tf
cpu = tf.config.list_physical_devices("CPU")[0]
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
from kmaskformer.build import build_evaluators, build_model
from kmaskformer.build_data import build_dataset
from kmaskformer.config import load_config
from kmaskformer.evaluation.evaluator import CombinedEvaluator
from kmaskformer.evaluation.run import Evaluation
from kmaskformer.training.distribution import distribution_strategy

config = load_config("configs/shapes/panoptic/maskformer_resnet18.yaml", [
    "model.transformer_decoder={num_queries: 6, hidden_dim: 32, num_heads: 2, feedforward_dim: 32, decoder_layers: 1}",
    "model.pixel_decoder={conv_dim: 32, mask_dim: 32}", "data.image_size=[64, 64]", "data.val={count: 5, seed: 1}",
    "data.test_batch_size=2", "evaluation.object_mask_threshold=0.0", "evaluation.overlap_threshold=0.0",
])
strategy = distribution_strategy("mirrored")
assert strategy.num_replicas_in_sync == 2
dataset = build_dataset(config.data, "val")
with strategy.scope():
    model = build_model(config.model, dataset.dataset_info)
evaluation = Evaluation(model, build_evaluators(config.evaluation))
inside = evaluation.run(dataset, progress=False)

# A copy with the same weights, on one device, in two parts that are merged.
alone = build_model(config.model, dataset.dataset_info)
alone.set_weights(model.get_weights())
evaluation = Evaluation(alone, build_evaluators(config.evaluation))
assert evaluation.run(dataset, progress=False)["evaluation/images"] == 5
whole = evaluation.evaluator.result()
merged = CombinedEvaluator(build_evaluators(config.evaluation))
merged.bind(dataset.dataset_info)
for worker in range(2):
    evaluation.run(dataset.shard(2, worker), progress=False)
    part = CombinedEvaluator(build_evaluators(config.evaluation))
    part.bind(dataset.dataset_info)
    part.load_state(evaluation.state())
    merged.merge(part)
for name, value in whole.items():
    for other in (inside[name], merged.result()[name]):
        both_undefined = math.isnan(value) and math.isnan(other)
        assert both_undefined or math.isclose(value, other, abs_tol=1e-6), (name, value, other)
print("semantic/mIoU", whole["semantic/mIoU"], "panoptic/SQ", whole["panoptic/SQ"])
"""


@pytest.mark.slow
def test_replicas_and_shards_give_the_scores_of_one_device(repository):
    environment = dict(os.environ, PYTHONPATH=str(repository), CUDA_VISIBLE_DEVICES="-1")
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], cwd=repository, env=environment, capture_output=True, text=True, timeout=900
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert "semantic/mIoU" in done.stdout
