"""Resume: the interrupted run equals the straight one, and whatever a kill leaves behind is survived."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import types

import keras
import numpy as np
import pytest

from kmaskformer.training.callbacks import StopAtStep
from kmaskformer.training.checkpoint import (
    RunCheckpoint,
    RunState,
    latest_checkpoint,
    list_checkpoints,
    restore_checkpoint,
    save_checkpoint,
)
from kmaskformer.training.optimizer import SGD, AdamW
from kmaskformer.training.schedules import WarmupPoly

tf = pytest.importorskip("tensorflow")


def toy_model(seed: int = 0, optimizer=None) -> keras.Model:
    keras.utils.set_random_seed(seed)
    layers = [keras.layers.Dense(8, "tanh"), keras.layers.Dropout(0.5), keras.layers.BatchNormalization()]
    model = keras.Sequential([keras.Input((4,)), *layers, keras.layers.Dense(2)])
    model.compile(optimizer=optimizer or AdamW(WarmupPoly(0.01, 10, warmup_steps=3), clip_norm=0.1), loss="mse")
    return model


def data_from(step: int):
    """Batches by step number, so that a resumed run sees what the straight one saw."""
    inputs = np.random.default_rng(7).normal(size=(10, 6, 4)).astype("float32")
    return tf.data.Dataset.from_tensor_slices((inputs, inputs[..., :2])).skip(step)


def assert_equal_state(first: keras.Model, second: keras.Model) -> None:
    pairs = [(first.weights, second.weights), (first.optimizer.variables, second.optimizer.variables)]
    for ours, theirs in pairs:
        for one, other in zip(ours, theirs, strict=True):
            np.testing.assert_allclose(one.numpy(), other.numpy(), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("interruption", [5, 7])
def test_five_steps_resume_and_five_more_equal_ten(tmp_path, interruption):
    straight = toy_model()
    straight.fit(data_from(0), verbose=0)

    interrupted = toy_model()
    callbacks = [RunCheckpoint(tmp_path, every_steps=5), StopAtStep(interruption)]
    interrupted.fit(data_from(0), verbose=0, callbacks=callbacks)

    resumed = toy_model(seed=99)
    state = restore_checkpoint(resumed, latest_checkpoint(tmp_path))
    assert state == RunState(step=interruption, epoch=0, batch=interruption)
    resumed.fit(data_from(state.step), verbose=0, callbacks=[RunCheckpoint(tmp_path, every_steps=5)])
    assert_equal_state(resumed, straight)
    assert int(resumed.optimizer.iterations) == 10


def test_loss_scaling_is_restored_too(tmp_path):
    first = toy_model(optimizer=keras.optimizers.LossScaleOptimizer(AdamW(0.01), initial_scale=8.0))
    first.fit(data_from(6), verbose=0)
    path = save_checkpoint(first, tmp_path, epoch=3)
    second = toy_model(optimizer=keras.optimizers.LossScaleOptimizer(AdamW(0.01)))
    assert restore_checkpoint(second, path) == RunState(step=4, epoch=3, batch=4)
    assert_equal_state(second, first)


def test_the_newest_are_kept(tmp_path):
    toy_model().fit(data_from(0), verbose=0, callbacks=[RunCheckpoint(tmp_path, every_steps=2, keep=3)])
    assert [path.name for path in list_checkpoints(tmp_path)] == ["step_00000006", "step_00000008", "step_00000010"]
    assert latest_checkpoint(tmp_path).name == "step_00000010"


def test_checkpoints_by_epoch_remember_the_epoch(tmp_path):
    model = toy_model()
    model.fit(data_from(8), epochs=3, verbose=0, callbacks=[RunCheckpoint(tmp_path, every_epochs=2)])
    assert [path.name for path in list_checkpoints(tmp_path)] == ["step_00000004", "step_00000006"]
    assert restore_checkpoint(model, latest_checkpoint(tmp_path)) == RunState(step=6, epoch=2, batch=6)


@pytest.mark.parametrize("intervals", [{"every_epochs": 1}, {}])
def test_an_undefined_score_costs_no_checkpoint(tmp_path, intervals):
    """Callbacks share the logs of an epoch, to which others add scores; that of a class nobody has seen is NaN."""

    class Scores(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            logs["val_panoptic/PQ_things"] = float("nan")

    toy_model().fit(data_from(8), verbose=0, callbacks=[Scores(), RunCheckpoint(tmp_path, **intervals)])
    assert [path.name for path in list_checkpoints(tmp_path)] == ["step_00000002"]


def test_a_loss_that_is_not_finite_saves_nothing(tmp_path):
    class Poison(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            logs["loss"] = float("nan")

    toy_model().fit(data_from(8), verbose=0, callbacks=[Poison(), RunCheckpoint(tmp_path, every_epochs=1)])
    assert list_checkpoints(tmp_path) == []


def test_no_checkpoint_yet(tmp_path):
    assert latest_checkpoint(tmp_path) is None
    assert latest_checkpoint(tmp_path / "missing") is None


@pytest.fixture()
def two_checkpoints(tmp_path):
    model = toy_model()
    for step in (5, 10):
        model.optimizer.iterations.assign(step)
        save_checkpoint(model, tmp_path)
    return model, list_checkpoints(tmp_path)


@pytest.mark.parametrize("name", ["model.weights.h5", "state.npz", "checkpoint.json"])
def test_a_damaged_checkpoint_falls_back_to_the_one_before(two_checkpoints, name):
    _, (older, newer) = two_checkpoints
    file = newer / name
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    with pytest.warns(UserWarning, match=f"{newer.name}: damaged checkpoint, .*; the one before is used"):
        assert latest_checkpoint(newer.parent) == older
    with pytest.raises(ValueError, match=r"damaged checkpoint, .*Take another one, or start the run anew"):
        restore_checkpoint(toy_model(), newer)


@pytest.mark.parametrize("name", ["model.weights.h5", "state.npz"])
def test_a_file_of_the_right_size_with_other_content_is_damage(two_checkpoints, name):
    _, (older, newer) = two_checkpoints
    content = bytearray((newer / name).read_bytes())
    middle = len(content) // 2
    content[middle : middle + 4] = bytes(255 - one for one in content[middle : middle + 4])
    (newer / name).write_bytes(content)
    with pytest.warns(UserWarning, match=f"{newer.name}: damaged .*the content of {name} is not what was written"):
        assert latest_checkpoint(newer.parent) == older


def test_a_manifest_of_another_kind_is_damage(two_checkpoints):
    _, (older, newer) = two_checkpoints
    (newer / "checkpoint.json").write_text("[]")
    with pytest.warns(UserWarning, match="a file it lists cannot be read"):
        assert latest_checkpoint(newer.parent) == older


def test_checkpoints_of_before_have_no_checksums(two_checkpoints):
    _, (_, newer) = two_checkpoints
    manifest = json.loads((newer / "checkpoint.json").read_text())
    del manifest["checksums"]
    (newer / "checkpoint.json").write_text(json.dumps(manifest))
    assert latest_checkpoint(newer.parent) == newer


def test_a_missing_file_is_damage(two_checkpoints):
    _, (older, newer) = two_checkpoints
    (newer / "state.npz").unlink()
    with pytest.warns(UserWarning, match="a file it lists cannot be read"):
        assert latest_checkpoint(newer.parent) == older


def test_a_run_that_fell_back_removes_what_is_damaged_and_half_written(two_checkpoints):
    _, (older, newer) = two_checkpoints
    (newer / "state.npz").unlink()
    (newer.parent / "partial.step_00000007").mkdir()
    model = toy_model()
    restore_checkpoint(model, older)
    model.fit(data_from(8), verbose=0, callbacks=[RunCheckpoint(newer.parent, every_steps=5)])
    assert sorted(path.name for path in newer.parent.iterdir()) == ["step_00000005", "step_00000007"]


def test_a_new_run_does_not_write_beside_later_checkpoints(two_checkpoints):
    _, (_, newer) = two_checkpoints
    with pytest.raises(FileExistsError, match=r"of a later update than the run that starts here \(0\)"):
        toy_model().fit(data_from(0), verbose=0, callbacks=[RunCheckpoint(newer.parent, every_steps=5)])
    assert newer.exists()


def test_a_failed_write_leaves_the_one_before(two_checkpoints, monkeypatch):
    model, (_, newer) = two_checkpoints
    before = (newer / "state.npz").read_bytes()

    def full_disk(*args, **kwargs):
        raise OSError("No space left on device")

    monkeypatch.setattr("kmaskformer.training.checkpoint.np.savez", full_disk)
    with pytest.raises(OSError, match="No space left"):
        save_checkpoint(model, newer.parent)
    assert (newer / "state.npz").read_bytes() == before
    assert latest_checkpoint(newer.parent) == newer
    assert len(list(newer.parent.iterdir())) == 2


def test_another_optimizer_is_an_error(two_checkpoints):
    _, (_, newer) = two_checkpoints
    model = toy_model(optimizer=SGD(0.1))
    with pytest.raises(
        ValueError, match=r"the optimizer state must fit the model's: expected \d+ arrays, received \d+"
    ):
        restore_checkpoint(model, newer)


def test_a_model_that_is_not_compiled_is_an_error(two_checkpoints):
    _, (_, newer) = two_checkpoints
    with pytest.raises(ValueError, match="`model` must be built and compiled before its state is restored"):
        restore_checkpoint(keras.Sequential([keras.layers.Dense(2)]), newer)


def test_keep_must_be_positive(tmp_path):
    with pytest.raises(ValueError, match=r"`keep` must be at least 1\. Received: keep=0"):
        RunCheckpoint(tmp_path, every_steps=1, keep=0)


def test_the_random_points_of_a_criterion_go_on_where_they_were(tmp_path):
    def with_points():
        model = toy_model()
        model.criterion = types.SimpleNamespace(seed_generator=keras.random.SeedGenerator(5))
        return model

    model, restored = with_points(), with_points()
    first = keras.random.uniform((3,), seed=model.criterion.seed_generator)
    restore_checkpoint(restored, save_checkpoint(model, tmp_path))
    second = keras.random.uniform((3,), seed=restored.criterion.seed_generator)
    expected = keras.random.uniform((3,), seed=model.criterion.seed_generator)
    np.testing.assert_array_equal(second, expected)
    assert not np.allclose(first, second)


ENDLESS_SCRIPT = """
import sys
import keras, numpy as np
from kmaskformer.training.checkpoint import RunCheckpoint
from kmaskformer.training.optimizer import SGD
model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(200_000, use_bias=False)])
model.compile(optimizer=SGD(1.0, momentum=0.0), loss="mse")
checkpoint = RunCheckpoint(sys.argv[1], keep=2)
checkpoint.set_model(model)
checkpoint.on_train_begin()
for step in range(1, 100_000):
    model.optimizer.iterations.assign(step)
    model.layers[0].kernel.assign(np.full((1, 200_000), step))
    checkpoint.act(step, {})
"""


def test_a_kill_at_any_moment_leaves_a_whole_checkpoint(tmp_path, repository):
    environment = {**os.environ, "KERAS_BACKEND": "tensorflow", "PYTHONPATH": str(repository)}
    process = subprocess.Popen(
        [sys.executable, "-c", ENDLESS_SCRIPT, str(tmp_path)],
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        deadline = time.monotonic() + 300
        while not len(list_checkpoints(tmp_path)) >= 2 and time.monotonic() < deadline:
            time.sleep(0.05)
        while not list(tmp_path.glob("partial.*")) and time.monotonic() < deadline:
            time.sleep(0.0005)
        time.sleep(0.002)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert list_checkpoints(tmp_path), "the process wrote nothing in time"
    model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(200_000, use_bias=False)])
    model.compile(optimizer=SGD(1.0, momentum=0.0), loss="mse")
    state = restore_checkpoint(model, latest_checkpoint(tmp_path))
    assert state.step >= 2
    np.testing.assert_array_equal(model.layers[0].kernel.numpy(), np.full((1, 200_000), state.step, "float32"))
    assert int(model.optimizer.iterations) == state.step
