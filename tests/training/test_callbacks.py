"""The callbacks in real `fit` runs of a small model that reports its loss terms as the package's models do."""

from __future__ import annotations

import errno
import json
import os
import signal

import keras
import numpy as np
import pytest

from kmaskformer.training.averages import averaged_weights
from kmaskformer.training.callbacks import (
    EvaluateCallback,
    IntervalCallback,
    LossProgressBar,
    PredictionPictures,
    StopAtStep,
    TrainingLog,
)
from kmaskformer.training.checkpoint import RunCheckpoint, list_checkpoints, restore_checkpoint
from kmaskformer.training.interruption import SaveOnSignal, TrainingInterrupted
from kmaskformer.training.nonfinite import NonFiniteLossError, WatchForNonFinite
from kmaskformer.training.optimizer import SGD
from kmaskformer.training.run_log import RunLog
from kmaskformer.training.saving import current_step, save_model
from kmaskformer.training.schedules import WarmupPoly

tf = pytest.importorskip("tensorflow")

STEPS = 8


class ToyModel(keras.Model):
    """One weight per term; the terms are the batch's value times the weights, so that logs can be told."""

    def __init__(self) -> None:
        super().__init__(name="toy")
        self.scale = self.add_weight(shape=(), initializer="ones", name="scale")
        self.built = True

    def call(self, inputs):
        return inputs * self.scale

    def train_step(self, data):
        with tf.GradientTape() as tape:
            value = tf.reduce_mean(self(data[0]))
            terms = {"loss_ce": value, "loss_mask": 2 * value, "loss_dice": 3 * value, "loss_mask_0": value**2}
            loss = tf.add_n(list(terms.values()))
        gradients = tape.gradient(loss, self.trainable_variables)
        self.optimizer.apply_gradients(zip(gradients, self.trainable_variables, strict=True))
        return {"loss": loss, **terms, "gradient_norm": self.optimizer.gradient_norm}


def toy_model(clip_norm: float = 1e-9, **options) -> ToyModel:
    model = ToyModel()
    rate = WarmupPoly(1e-3, total_steps=10, power=1.0)
    model.compile(optimizer=SGD(rate, weight_decay=0.0, momentum=0.0, clip_norm=clip_norm, **options))
    return model


def batches(values=range(1, STEPS + 1)):
    data = np.array(list(values), "float32")[:, None]
    return tf.data.Dataset.from_tensor_slices((data, data)).batch(1)


def fit(callbacks, model=None, values=range(1, STEPS + 1), **kwargs):
    model = model or toy_model()
    kwargs = {"verbose": 0, "epochs": 1, **kwargs}
    return model, model.fit(batches(values), callbacks=callbacks, **kwargs)


def test_all_terms_and_the_learning_rate_reach_the_log_and_tensorboard(tmp_path):
    accumulator_module = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    log = RunLog(tmp_path)
    fit([TrainingLog(log, every_steps=3)])
    log.close()
    rows = log.rows("train")
    assert [row["step"] for row in rows] == [3, 6, 8]
    assert [row["loss_ce"] for row in rows] == pytest.approx([2.0, 5.0, 7.5], rel=1e-5)
    assert [row["loss_mask_0"] for row in rows] == pytest.approx([14 / 3, 77 / 3, 113 / 2], rel=1e-5)
    assert [row["learning_rate"] for row in rows] == pytest.approx([8e-4, 5e-4, 3e-4], rel=1e-5)
    assert rows[0]["gradient_norm"] == pytest.approx(np.mean([6 * x + 2 * x * x for x in (1, 2, 3)]), rel=1e-5)
    assert all(row["seconds_per_step"] > 0 and row["epoch"] == 0 for row in rows)
    accumulator = accumulator_module.EventAccumulator(str(tmp_path / "tensorboard"))
    accumulator.Reload()
    names = {"loss", "loss_ce", "loss_mask", "loss_dice", "loss_mask_0", "gradient_norm", "learning_rate"}
    assert {f"train/{name}" for name in names} <= set(accumulator.Tags()["tensors"])
    events = [(e.step, float(tf.make_ndarray(e.tensor_proto))) for e in accumulator.Tensors("train/loss_dice")]
    assert events == [(row["step"], pytest.approx(row["loss_dice"])) for row in rows]


def test_a_run_that_goes_on_within_an_epoch_logs_the_epochs_of_a_straight_one(tmp_path):
    straight, resumed = (RunLog(tmp_path / name, tensorboard=False) for name in ("straight", "resumed"))
    values = range(1, 13)
    fit(
        [TrainingLog(straight, 1, epoch_steps=5), StopAtStep(12)],
        values=[*values, 1, 1, 1],
        epochs=3,
        steps_per_epoch=5,
    )
    log = TrainingLog(resumed, 1, epoch_steps=5)
    model, _ = fit([log], values=values, epochs=1, steps_per_epoch=8)
    fit([log, StopAtStep(12)], model, values=[9, 10, 11, 12, 1], epochs=2, initial_epoch=1, steps_per_epoch=5)
    epochs = [row["epoch"] for row in straight.rows()]
    assert epochs == [0] * 5 + [1] * 5 + [2] * 2 == [row["epoch"] for row in resumed.rows()]


def test_the_progress_bar_shows_the_total_and_three_kinds(capsys):
    fit([LossProgressBar()], verbose=1)
    shown = capsys.readouterr().out
    for name in ("loss:", "loss_ce:", "loss_mask:", "loss_dice:"):
        assert name in shown
    assert "loss_mask_0" not in shown and "gradient_norm" not in shown
    last = shown.split("loss: ")[-1]
    assert last.index("loss_ce") < last.index("loss_mask") < last.index("loss_dice")
    assert "8/8" in shown


def test_a_checkpoint_is_not_made_of_a_non_finite_state(tmp_path):
    fit([RunCheckpoint(tmp_path, every_steps=1, keep=9)], values=[1, np.nan, np.nan])
    assert [path.name for path in list_checkpoints(tmp_path)] == ["step_00000001"]


def test_stop_at_step_counts_over_epochs():
    model, history = fit([StopAtStep(11)], epochs=5)
    assert current_step(model) == 11
    assert len(history.epoch) == 2


class Recorder(IntervalCallback):
    """Notes when it acted."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.steps = []

    def act(self, step, logs):
        self.steps.append(step)


@pytest.mark.parametrize(
    ("arguments", "epochs", "expected"),
    [
        ({"every_steps": 3}, 1, [3, 6, 8]),
        ({"every_steps": 3, "at_end": False}, 2, [3, 6, 9, 12, 15]),
        ({"every_steps": 4}, 1, [4, 8]),
        ({"every_epochs": 2}, 3, [16, 24]),
        ({"every_epochs": 1, "every_steps": 4}, 1, [4, 8]),
        ({}, 1, [8]),
    ],
)
def test_intervals(arguments, epochs, expected):
    recorder = Recorder(**arguments)
    fit([recorder], epochs=epochs)
    assert recorder.steps == expected


def test_intervals_with_several_steps_per_execution():
    model = ToyModel()
    model.compile(optimizer=SGD(1e-3, momentum=0.0), steps_per_execution=4)
    recorder = Recorder(every_steps=3)
    fit([recorder], model)
    assert recorder.steps == [4, 8]


def test_intervals_go_on_from_the_optimizers_count():
    model, _ = fit([])
    recorder = Recorder(every_steps=10, at_end=False)
    fit([recorder], model)
    assert recorder.steps == [10]


def test_evaluation_prints_logs_and_keeps_the_best_weights(tmp_path, capsys):
    log = RunLog(tmp_path, tensorboard=False)
    scores = iter([0.2, 0.6, 0.4, 0.5])
    best = tmp_path / "weights" / "best.weights.h5"
    kept = []

    class Keeper(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            kept.append(float(keras.ops.convert_to_numpy(self.model.scale)))

    callback = EvaluateCallback(
        lambda: {"mIoU": next(scores), "classes": [1, 2]}, log, 2, monitor="mIoU", best_weights=best
    )
    model, history = fit([Keeper(), callback], toy_model(clip_norm=1.0))
    assert [(row["step"], row["mIoU"]) for row in log.rows("evaluation")] == [(2, 0.2), (4, 0.6), (6, 0.4), (8, 0.5)]
    assert "Update 4: mIoU 0.6" in capsys.readouterr().out
    assert history.history["mIoU"] == [0.5]
    model.load_weights(best)
    assert float(model.scale) == kept[3] != kept[7]
    assert [path.name for path in best.parent.iterdir()] == ["best.weights.h5"]


def test_a_resumed_run_knows_its_best_score(tmp_path):
    log = RunLog(tmp_path, tensorboard=False)
    log.write("evaluation", 0, {"mIoU": 0.9})
    callback = EvaluateCallback(lambda: {"mIoU": 0.5}, log, 4, monitor="mIoU", best_weights=tmp_path / "b.weights.h5")
    fit([callback])
    assert callback.best_score == 0.9
    assert not (tmp_path / "b.weights.h5").exists()


def test_best_weights_that_cannot_be_written_are_warned_of_and_the_next_best_are_kept(tmp_path, monkeypatch):
    best, written = tmp_path / "best.weights.h5", []

    def save_where_there_is_space(model, path):
        if current_step(model) in (2, 4):
            raise OSError(errno.ENOSPC, "No space left on device")
        written.append(current_step(model))

    monkeypatch.setattr("kmaskformer.training.callbacks.save_model", save_where_there_is_space)
    scores = iter([0.2, 0.6, 0.4, 0.3])
    callback = EvaluateCallback(lambda: {"mIoU": next(scores)}, None, 2, monitor="mIoU", best_weights=best)
    with pytest.warns(RuntimeWarning, match=r"best\.weights\.h5: cannot be written: .*No space.* of update 4, are not"):
        model, _ = fit([callback])
    assert current_step(model) == STEPS
    assert (written, callback.best_score) == ([6], 0.4)


def test_evaluation_by_epochs_without_a_log():
    calls = []
    fit([EvaluateCallback(lambda: {"score": float(len(calls) or calls.append(1) or 1)}, every_epochs=1)], epochs=2)
    assert len(calls) == 1


def test_pictures(tmp_path):
    log = RunLog(tmp_path, tensorboard=False)
    fit([PredictionPictures(lambda: np.full((3, 4, 3), 7, np.uint8), log, every_steps=4)])
    assert [path.name for path in sorted((tmp_path / "pictures").iterdir())] == [
        "predictions_0000004.png",
        "predictions_0000008.png",
    ]


def test_save_model_writes_weights_or_the_whole_model(tmp_path):
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    save_model(model, tmp_path / "new" / "m.weights.h5")
    save_model(model, tmp_path / "new" / "m.keras")
    copy = keras.models.load_model(tmp_path / "new" / "m.keras")
    np.testing.assert_array_equal(copy.get_weights()[0], model.get_weights()[0])
    copy.load_weights(tmp_path / "new" / "m.weights.h5")


def test_a_weights_file_has_no_optimizer_state_and_training_goes_on(tmp_path):
    h5py = pytest.importorskip("h5py")
    model, _ = fit([])
    optimizer = model.optimizer
    save_model(model, tmp_path / "m.weights.h5")
    with h5py.File(tmp_path / "m.weights.h5") as file:
        assert "optimizer" not in file
    assert model.optimizer is optimizer
    fit([], model)
    assert current_step(model) == 16


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Recorder(every_steps=0), "`every_steps` must be at least 1, or None. Received: every_steps=0"),
        (lambda: Recorder(every_epochs=-1), "`every_epochs` must be at least 1, or None. Received: every_epochs=-1"),
        (lambda: Recorder(at_end=False), "`every_steps` or `every_epochs` must be given. Received: None for both"),
        (lambda: EvaluateCallback(dict, monitor="x"), "`monitor` and `best_weights` must be given together. Received"),
        (
            lambda: TrainingLog(None, epoch_steps=0),
            "`epoch_steps` must be at least 1, or None. Received: epoch_steps=0",
        ),
        (lambda: save_model(None, "a.h5"), "`path` must end in .weights.h5 or .keras. Received: path=a.h5"),
    ],
)
def test_errors(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_an_unknown_monitor_is_an_error_that_lists_the_scores(tmp_path):
    callback = EvaluateCallback(lambda: {"PQ": 1.0}, None, 2, monitor="mIoU", best_weights=tmp_path / "b.weights.h5")
    with pytest.raises(ValueError, match=r"`monitor` must be one of \['PQ'\]. Received: monitor='mIoU'"):
        fit([callback])


def test_a_non_finite_loss_stops_the_run_names_the_term_and_saves_nothing(tmp_path):
    run_log = RunLog(tmp_path, tensorboard=False)
    checkpoint = RunCheckpoint(tmp_path / "checkpoints", every_steps=2)
    watch = WatchForNonFinite("stop", tmp_path, lambda batch: [f"image_{batch}.jpg"], first_batch=100)
    with pytest.raises(NonFiniteLossError) as caught:
        # The largest float32 is squared in one term only.
        fit([watch, TrainingLog(run_log, 1), checkpoint], values=[1, 2, 3, 1e30, 5])
    message = str(caught.value)
    assert message.startswith("Update 4: loss_mask_0 inf, loss inf, gradient_norm inf. The run stops; saved weights")
    assert "Finite: loss_ce 1e+30, loss_dice 3e+30, loss_mask 2e+30. Images of the batch: image_103.jpg. A" in message
    assert [path.name for path in list_checkpoints(tmp_path / "checkpoints")] == ["step_00000002"]
    assert [row["step"] for row in run_log.rows()] == [1, 2, 3]
    (row,) = [json.loads(line) for line in (tmp_path / "suspicious_batches.jsonl").read_text().splitlines()]
    assert (row["step"], row["batch"], row["kind"], row["images"]) == (4, 103, "not finite", ["image_103.jpg"])
    assert row["terms"] == {"loss_mask_0": "inf", "loss": "inf", "gradient_norm": "inf"}


def test_a_non_finite_batch_is_skipped_if_asked_and_changes_nothing(tmp_path):
    values = [1, 2, 1e30, np.nan, 5]
    run_log = RunLog(tmp_path, tensorboard=False)
    model = toy_model(clip_norm=1.0, skip_nonfinite=True)
    callbacks = [WatchForNonFinite("skip", tmp_path), TrainingLog(run_log, every_steps=5)]
    with pytest.warns(RuntimeWarning, match=r"Update 3 is skipped: loss_mask_0 inf.* in the batch of unknown images"):
        fit(callbacks, model, values)
    # Clipped to 1, each good gradient moves the weight by its update's rate: 1e-3, 9e-4 and, of the fifth, 6e-4.
    assert float(model.scale) == pytest.approx(1 - 1e-3 - 9e-4 - 6e-4, abs=1e-6)
    assert current_step(model) == 5
    assert run_log.rows()[0]["loss_ce"] == pytest.approx((1 + 2 + 5) / 3, rel=1e-2)
    rows = (tmp_path / "suspicious_batches.jsonl").read_text().splitlines()
    assert [json.loads(row)["batch"] for row in rows] == [2, 3]


def test_images_that_cannot_be_named_change_nothing_else(tmp_path):
    def images_of(batch):
        raise OSError("the disk is gone")

    with pytest.raises(NonFiniteLossError, match="Images of the batch: unknown images"):
        fit([WatchForNonFinite("stop", tmp_path, images_of)], values=[np.nan])
    (row,) = (tmp_path / "suspicious_batches.jsonl").read_text().splitlines()
    assert json.loads(row)["images"] == []


def test_a_note_of_a_batch_that_cannot_be_written_is_warned_of(tmp_path):
    (tmp_path / "suspicious_batches.jsonl").mkdir()
    watch = WatchForNonFinite("stop", tmp_path, lambda batch: ["a.jpg"])
    with (
        pytest.warns(RuntimeWarning, match=r"suspicious_batches\.jsonl: cannot be written: .* It lacks batch 0\."),
        pytest.raises(NonFiniteLossError, match=r"Images of the batch: a\.jpg"),
    ):
        fit([watch], values=[np.nan])


def test_a_run_in_which_nothing_is_finite_ends(tmp_path):
    model = toy_model(skip_nonfinite=True)
    with (
        pytest.warns(RuntimeWarning, match="is skipped"),
        pytest.raises(NonFiniteLossError, match=r"Update 20: .* 20 batches in a row were not finite"),
    ):
        fit([WatchForNonFinite("skip")], model, [np.nan] * 30)


def test_an_outlier_is_written_down_and_the_run_goes_on(tmp_path):
    with pytest.warns(RuntimeWarning, match="Update 26: loss .* is an outlier; batch of image 25"):
        model, _ = fit([WatchForNonFinite("stop", tmp_path, lambda b: [f"image {b}"])], values=[1] * 25 + [500, 1])
    assert current_step(model) == 27
    rows = [json.loads(row) for row in (tmp_path / "suspicious_batches.jsonl").read_text().splitlines()]
    assert [(row["kind"], list(row["terms"])) for row in rows] == [
        ("outlier", ["loss"]),
        ("outlier", ["gradient_norm"]),
    ]


def test_on_nan_is_stop_or_skip():
    with pytest.raises(ValueError, match=r"`on_nan` must be one of stop, skip. Received: on_nan='ignore'"):
        WatchForNonFinite("ignore")


def test_sigterm_saves_after_the_batch_and_leaves_fit(tmp_path):
    class Terminate(keras.callbacks.Callback):
        def on_train_batch_begin(self, batch, logs=None):
            if batch == 4:
                os.kill(os.getpid(), signal.SIGTERM)

    before = signal.getsignal(signal.SIGTERM)
    checkpoint = RunCheckpoint(tmp_path, every_steps=3, first_batch=7)
    with pytest.raises(TrainingInterrupted, match=r"SIGTERM: saved after update 5\. Go on with --resume"):
        fit([Terminate(), checkpoint, SaveOnSignal(checkpoint)])
    assert [path.name for path in list_checkpoints(tmp_path)] == ["step_00000003", "step_00000005"]
    state = restore_checkpoint(toy_model(), tmp_path / "step_00000005")
    assert (state.step, state.batch) == (5, 12)
    assert signal.getsignal(signal.SIGTERM) == before


def test_sigterm_says_when_nothing_could_be_saved(tmp_path, monkeypatch):
    class Terminate(keras.callbacks.Callback):
        def on_train_batch_begin(self, batch, logs=None):
            os.kill(os.getpid(), signal.SIGTERM)

    def full(*arguments):
        raise OSError("no space left")

    monkeypatch.setattr("kmaskformer.training.checkpoint.save_checkpoint", full)
    checkpoint = RunCheckpoint(tmp_path, every_steps=3)
    message = "not saved, only the checkpoints before are there, after update 1"
    with pytest.warns(RuntimeWarning, match="cannot be written"), pytest.raises(TrainingInterrupted, match=message):
        fit([Terminate(), checkpoint, SaveOnSignal(checkpoint)])


def test_a_full_disk_is_warned_of_and_the_run_goes_on(tmp_path, monkeypatch):
    def full_disk(*args, **kwargs):
        raise OSError("No space left on device")

    class FillTheDisk(keras.callbacks.Callback):
        def on_train_batch_begin(self, batch, logs=None):
            if batch == 3:
                monkeypatch.setattr("kmaskformer.training.checkpoint.np.savez", full_disk)

    with pytest.warns(RuntimeWarning, match="update 4 cannot be written: No space .* The newest is step_00000002"):
        model, _ = fit([FillTheDisk(), RunCheckpoint(tmp_path, every_steps=2)])
    assert current_step(model) == STEPS
    assert [path.name for path in tmp_path.iterdir()] == ["step_00000002"]


def test_averaged_weights_are_there_for_a_while_and_the_run_goes_on_from_its_own():
    model, _ = fit([], toy_model(clip_norm=1.0, use_ema=True, ema_momentum=0.5), values=[1, 1, 1])
    weights = np.cumsum([1.0, -1e-3, -9e-4, -8e-4])[1:]
    assert float(model.scale) == pytest.approx(weights[2], abs=1e-6)
    with averaged_weights(model):
        # The first update starts the average.
        expected = 0.5 * (0.5 * weights[0] + 0.5 * weights[1]) + 0.5 * weights[2]
        assert float(model.scale) == pytest.approx(expected, abs=1e-6)
    assert float(model.scale) == pytest.approx(weights[2], abs=1e-6)


def test_without_averages_nothing_is_put_in_place():
    model, _ = fit([], values=[1])
    before = float(model.scale)
    with averaged_weights(model):
        assert float(model.scale) == before
