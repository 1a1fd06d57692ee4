"""Two replicas against one: the gradient is summed first and clipped once."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import numpy as np
import pytest

SCRIPT = """
import json, sys, tempfile
import keras, numpy as np, tensorflow as tf
cpu = tf.config.list_physical_devices("CPU")[0]
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
from kmaskformer.training.averages import averaged_weights
from kmaskformer.training.callbacks import TrainingLog
from kmaskformer.training.checkpoint import RunCheckpoint, latest_checkpoint, restore_checkpoint
from kmaskformer.training.distribution import distribution_strategy, is_chief
from kmaskformer.training.optimizer import SGD, AdamW
from kmaskformer.training.run_log import RunLog

# One per process: TensorFlow numbers the collectives of each strategy from the same start.
strategies = {name: distribution_strategy(name) for name in (None, "mirrored")}

def direct(name):
    # Each replica has its own gradient; one replica gets their sum.
    strategy = strategies[name]
    with strategy.scope():
        variables = [keras.Variable(np.ones(2, "float32"), name=n) for n in ("a", "b")]
        optimizer = SGD(1.0, weight_decay=0.0, momentum=0.0, clip_norm=0.01)
        optimizer.build(variables)
    replica_gradients = tf.constant([[[30.0, 0.0], [0.0, 0.0]], [[0.0, 0.0], [0.0, 0.04]]])

    @tf.function
    def step():
        def replica_step():
            replica = tf.distribute.get_replica_context().replica_id_in_sync_group
            own = replica_gradients[replica] if name else tf.reduce_sum(replica_gradients, axis=0)
            optimizer.apply_gradients(zip(tf.unstack(own), variables))
        strategy.run(replica_step)

    step()
    return [np.asarray(v.numpy()).tolist() for v in variables] + [float(optimizer.gradient_norm)]

def fitted(name, make, mixed=False):
    keras.utils.set_random_seed(5)
    keras.config.set_dtype_policy("mixed_float16" if mixed else "float32")
    strategy = strategies[name]
    with strategy.scope():
        model = keras.Sequential([keras.Input((6,)), keras.layers.Dense(8, "tanh", name="backbone"),
                                  keras.layers.LayerNormalization(), keras.layers.Dense(2)])
        model.compile(optimizer=make(), loss="mse", jit_compile=False)
        model.optimizer.build(model.trainable_variables)
    start = [v.numpy() for v in model.weights]
    rng = np.random.default_rng(0)
    x = rng.normal(size=(80, 6)).astype("float32")
    y = (np.arange(80)[:, None] * x[:, :2]).astype("float32")
    run = tempfile.mkdtemp()
    callbacks = [TrainingLog(RunLog(run, tensorboard=False), every_steps=5), RunCheckpoint(run + "/checkpoints")]
    model.fit(tf.data.Dataset.from_tensor_slices((x, y)).batch(8), verbose=0, callbacks=callbacks)
    end = [v.numpy() for v in model.weights]
    for variable in model.weights + model.optimizer.variables:
        variable.assign(tf.zeros_like(variable))
    state = restore_checkpoint(model, latest_checkpoint(run + "/checkpoints"))
    restored = state.step == 10 and all((v.numpy() == e).all() for v, e in zip(model.weights, end))
    inner = getattr(model.optimizer, "inner_optimizer", model.optimizer)
    moved = [(w.numpy() - s).ravel().tolist() for w, s in zip(model.weights, start)]
    with averaged_weights(model):
        averages = sum([v.numpy().ravel().tolist() for v in model.trainable_variables], [])
    return {"moved": sum(moved, []), "averages": averages, "norm": float(inner.gradient_norm),
            "steps": int(inner.iterations.numpy()), "restored": bool(restored),
            "rows": len(callbacks[0].run_log.rows()), "replicas": strategy.num_replicas_in_sync,
            "chief": is_chief(strategy)}

choices = {"sgd": lambda: SGD(0.5, clip_norm=0.01),
           "adamw": lambda: AdamW(1e-3, clip_norm=0.01, use_ema=True, ema_momentum=0.5)}
result = {"direct": [direct(None), direct("mirrored")]}
for key, make in choices.items():
    result[key] = [fitted(None, make), fitted("mirrored", make)]
print("RESULT" + json.dumps(result))
"""


@pytest.fixture(scope="module")
def result(repository) -> dict:
    environment = {**os.environ, "KERAS_BACKEND": "tensorflow", "PYTHONPATH": str(repository)}
    done = subprocess.run([sys.executable, "-c", SCRIPT], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.split("RESULT")[1])


def test_the_sum_is_clipped_once(result):
    one, two = result["direct"]
    norm = np.hypot(30.0, 0.04)
    scale = 0.01 / (norm + 1e-6)
    assert one[2] == pytest.approx(norm)
    np.testing.assert_allclose(one[0], [1 - 30 * scale, 1.0], rtol=1e-6)
    np.testing.assert_allclose(one[1], [1.0, 1 - 0.04 * scale], rtol=1e-6)
    for ours, theirs in zip(one, two, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-6)


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_ten_steps_of_fit_on_two_replicas_equal_one(result, name):
    one, two = result[name]
    assert (one["replicas"], two["replicas"], one["steps"], two["steps"]) == (1, 2, 10, 10)
    assert one["norm"] > 1.0, "the clip must be active"
    assert two["norm"] == pytest.approx(one["norm"], rel=1e-4)
    largest = np.abs(one["moved"]).max()
    np.testing.assert_allclose(two["moved"], one["moved"], atol=1e-4 * largest)
    np.testing.assert_allclose(two["averages"], one["averages"], atol=1e-4 * largest)


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_callbacks_and_checkpoints_work_under_a_strategy(result, name):
    for one in result[name]:
        assert one["rows"] == 2
        assert one["restored"]


def test_a_single_process_is_the_chief(result):
    assert result["sgd"][0]["chief"] and result["sgd"][1]["chief"]
