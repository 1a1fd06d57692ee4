"""On a GPU: `fit` as Keras compiles it there, and two logical GPUs as two replicas. `pytest -m gpu`."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

tf = pytest.importorskip("tensorflow")
pytestmark = pytest.mark.gpu

SCRIPT = """
import json, sys
import numpy as np, tensorflow as tf
gpu = tf.config.list_physical_devices("GPU")[0]
if sys.argv[1] == "mirrored":
    parts = [tf.config.LogicalDeviceConfiguration(memory_limit=4096)] * 2
    tf.config.set_logical_device_configuration(gpu, parts)
import keras, kmaskformer as kmf
from kmaskformer.config import load_config
settings = ["data.batch_size=4", "data.train={count: 8}", "data.max_segments=8", "data.augmentation={crop: [64, 64]}"]
config = load_config("configs/shapes/panoptic/maskformer_resnet18.yaml", settings)
keras.utils.set_random_seed(0)
strategy = kmf.distribution_strategy(sys.argv[1])
with strategy.scope():
    model = kmf.build_model(config.model)
    optimizer, criterion = kmf.build_optimizer(config.optimizer), kmf.build_criterion(config.loss)
    model.compile(optimizer, criterion, jit_compile=sys.argv[2] == "jit")
history = model.fit(kmf.build_dataset(config.data, "train"), steps_per_epoch=3, verbose=0, shuffle=False).history
print("RESULT" + json.dumps([strategy.num_replicas_in_sync, history["loss"][0]]))
"""


@pytest.mark.parametrize(
    ("strategy", "jit", "replicas"), [("none", "jit", 1), ("none", "plain", 1), ("mirrored", "", 2)]
)
def test_fit_on_a_gpu(strategy, jit, replicas, repository):
    if not tf.config.list_physical_devices("GPU"):
        pytest.skip("TensorFlow finds no GPU")
    environment = {**os.environ, "PYTHONPATH": str(repository), "KERAS_BACKEND": "tensorflow"}
    command = [sys.executable, "-c", SCRIPT, strategy, jit]
    result = subprocess.run(command, env=environment, cwd=repository, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr[-3000:]
    found, loss = json.loads(result.stdout.rpartition("RESULT")[2])
    assert found == replicas
    assert 0 < loss < 1000
