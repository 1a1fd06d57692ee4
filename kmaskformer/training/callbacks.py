"""Keras callbacks of a training run: progress bar, metrics, evaluation and pictures.

They count optimizer updates (`model.optimizer.iterations`), so that a resumed run goes on with the right numbers, and
they take functions rather than data: what is evaluated or drawn is for the caller to say.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np

from kmaskformer.training.averages import averaged_weights
from kmaskformer.training.run_log import RunLog, scalars
from kmaskformer.training.saving import current_step, save_model
from kmaskformer.training.unwritten import warned_of

LOSS_NAMES = ("loss", "loss_ce", "loss_mask", "loss_dice")
"""What the progress bar shows: the total, and the three kinds of the last decoder layer."""


class IntervalCallback(keras.callbacks.Callback):
    """Base of callbacks that act every so many updates or epochs, and at the end of the run.

    Args:
        every_steps: Updates between two actions; `None` for none by updates.
        every_epochs: Epochs between two actions; `None` for none by epochs.
        at_end: Whether to act at the end of training too, unless it was just done.

    Raises:
        ValueError: If an interval is less than 1, or there is nothing to act on.
    """

    def __init__(self, every_steps: int | None = None, every_epochs: int | None = None, at_end: bool = True) -> None:
        super().__init__()
        for name, value in {"every_steps": every_steps, "every_epochs": every_epochs}.items():
            if value is not None and value < 1:
                raise ValueError(f"`{name}` must be at least 1, or None. Received: {name}={value}")
        if every_steps is None and every_epochs is None and not at_end:
            raise ValueError("`every_steps` or `every_epochs` must be given. Received: None for both, at_end=False")
        self.every_steps = every_steps
        self.every_epochs = every_epochs
        self.at_end = at_end
        self.epoch = 0
        self._seen_step = 0
        self._acted_step: int | None = None

    def act(self, step: int, logs: Mapping[str, Any]) -> None:
        """What is done after update `step`; `logs` are those of the batch or the epoch."""
        raise NotImplementedError

    def on_train_begin(self, logs: Mapping[str, Any] | None = None) -> None:
        self._seen_step = current_step(self.model)

    def on_epoch_begin(self, epoch: int, logs: Mapping[str, Any] | None = None) -> None:
        self.epoch = epoch

    def on_train_batch_end(self, batch: int, logs: Mapping[str, Any] | None = None) -> None:
        step = current_step(self.model)
        # A batch may count several updates, or none (a skipped one under loss scaling).
        due = self.every_steps is not None and step // self.every_steps > self._seen_step // self.every_steps
        self._seen_step = step
        if due:
            self._act_once(step, logs)

    def on_epoch_end(self, epoch: int, logs: Mapping[str, Any] | None = None) -> None:
        if self.every_epochs is not None and (epoch + 1) % self.every_epochs == 0:
            self._act_once(current_step(self.model), logs)

    def on_train_end(self, logs: Mapping[str, Any] | None = None) -> None:
        if self.at_end:
            self._act_once(current_step(self.model), logs)

    def _act_once(self, step: int, logs: Mapping[str, Any] | None) -> None:
        if step != self._acted_step:
            self._acted_step = step
            self.act(step, logs or {})


class LossProgressBar(keras.callbacks.ProgbarLogger):
    """Keras' progress bar with the total and the three loss kinds only; the other terms are in TensorBoard.

    Args:
        names: Entries of the logs to show, in this order.
    """

    def __init__(self, names: Sequence[str] = LOSS_NAMES) -> None:
        super().__init__()
        self.names = tuple(names)

    def on_train_batch_end(self, batch: int, logs: Mapping[str, Any] | None = None) -> None:
        super().on_train_batch_end(batch, self._shown(logs))

    def on_epoch_end(self, epoch: int, logs: Mapping[str, Any] | None = None) -> None:
        super().on_epoch_end(epoch, self._shown(logs))

    def _shown(self, logs: Mapping[str, Any] | None) -> dict[str, Any]:
        logs = logs or {}
        return {name: logs[name] for name in self.names if name in logs}


class StopAtStep(keras.callbacks.Callback):
    """Ends the run after a number of updates, whatever epochs are asked of `fit`: a resumed run stops in time.

    Args:
        total_steps: Updates of the whole run, those before a resume included.
    """

    def __init__(self, total_steps: int) -> None:
        super().__init__()
        self.total_steps = total_steps

    def on_train_batch_end(self, batch: int, logs: Mapping[str, Any] | None = None) -> None:
        if current_step(self.model) >= self.total_steps:
            self.model.stop_training = True


class TrainingLog(IntervalCallback):
    """Writes all loss terms and the learning rate to the run's metrics and to TensorBoard.

    A row holds the mean over the updates since the row before, but `learning_rate`, which is that of the last update;
    and `epoch` and `seconds_per_step`.

    Args:
        run_log: Where to write.
        every_steps: Updates between two rows.
        epoch_steps: Updates of an epoch, to count them by; `None` for the epochs of `fit`, which begin anew with a
            resumed run.

    Raises:
        ValueError: If a number of updates is less than 1.
    """

    def __init__(self, run_log: RunLog, every_steps: int = 20, epoch_steps: int | None = None) -> None:
        super().__init__(every_steps=every_steps)
        if epoch_steps is not None and epoch_steps < 1:
            raise ValueError(f"`epoch_steps` must be at least 1, or None. Received: epoch_steps={epoch_steps}")
        self.run_log = run_log
        self.epoch_steps = epoch_steps
        self._reset()

    def on_train_begin(self, logs: Mapping[str, Any] | None = None) -> None:
        super().on_train_begin(logs)
        self._reset()

    def on_train_batch_begin(self, batch: int, logs: Mapping[str, Any] | None = None) -> None:
        self._started = time.perf_counter()
        # Read before the update: afterwards a schedule gives the rate of the next one.
        self._learning_rate = float(keras.ops.convert_to_numpy(self.model.optimizer.learning_rate))

    def on_train_batch_end(self, batch: int, logs: Mapping[str, Any] | None = None) -> None:
        self._seconds += time.perf_counter() - self._started
        self._batches += 1
        values = scalars(logs or {})
        if all(math.isfinite(value) for value in values.values()):  # a batch that was skipped has no mean
            self._counted += 1
            for name, value in values.items():
                self._sums[name] = self._sums.get(name, 0.0) + value
        super().on_train_batch_end(batch, logs)

    def act(self, step: int, logs: Mapping[str, Any]) -> None:
        if self._batches == 0:
            return
        means = {name: value / self._counted for name, value in self._sums.items()}
        seconds = self._seconds / self._batches
        epoch = self.epoch if self.epoch_steps is None else (step - 1) // self.epoch_steps
        others = {"learning_rate": self._learning_rate, "epoch": epoch, "seconds_per_step": seconds}
        self.run_log.write("train", step, {**means, **others})
        self._reset()

    def _reset(self) -> None:
        self._sums: dict[str, float] = {}
        self._batches = 0
        self._counted = 0
        self._seconds = 0.0


class EvaluateCallback(IntervalCallback):
    """Evaluates during `fit`: prints the scores, writes them to the run's metrics and keeps the best weights.

    The scores join the logs of the epoch, and so Keras' `History`. After a resume the best score so far is taken from
    the run's metrics. Weights that cannot be written, on a full disk, are warned of, and the run goes on.

    Args:
        evaluate_fn: Returns the scores by name, higher is better for `monitor`.
        run_log: Where to write; `None` to print only.
        every_steps: Updates between two evaluations; `None` for none by updates.
        every_epochs: Epochs between two evaluations; `None` for none by epochs.
        monitor: Name of the score that says which weights are best; `None` to keep none.
        best_weights: File of the best weights: `*.weights.h5`, or `*.keras` for the whole model.

    Raises:
        ValueError: If only one of `monitor` and `best_weights` is given, or `evaluate_fn` returns no score `monitor`.
    """

    def __init__(
        self,
        evaluate_fn: Callable[[], Mapping[str, float]],
        run_log: RunLog | None = None,
        every_steps: int | None = None,
        every_epochs: int | None = None,
        monitor: str | None = None,
        best_weights: str | Path | None = None,
    ) -> None:
        super().__init__(every_steps, every_epochs)
        if (monitor is None) != (best_weights is None):
            received = f"monitor={monitor!r}, best_weights={best_weights!r}"
            raise ValueError(f"`monitor` and `best_weights` must be given together. Received: {received}")
        self.evaluate_fn = evaluate_fn
        self.run_log = run_log
        self.monitor = monitor
        self.best_weights = None if best_weights is None else Path(best_weights)
        self.best_score = -math.inf
        self.scores: dict[str, float] = {}

    def on_train_begin(self, logs: Mapping[str, Any] | None = None) -> None:
        super().on_train_begin(logs)
        rows = self.run_log.rows("evaluation") if self.run_log else []
        earlier = [row[self.monitor] for row in rows if row.get(self.monitor) is not None]
        self.best_score = max(earlier, default=-math.inf)

    def act(self, step: int, logs: Mapping[str, Any]) -> None:
        self.scores = scalars(self.evaluate_fn())
        print(f"\nUpdate {step}: {listed(self.scores)}", flush=True)
        if self.run_log is not None:
            self.run_log.write("evaluation", step, self.scores)
        if self.monitor is not None:
            self._keep_best()

    def on_epoch_begin(self, epoch: int, logs: Mapping[str, Any] | None = None) -> None:
        super().on_epoch_begin(epoch, logs)
        self.scores = {}

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        super().on_epoch_end(epoch, logs)
        if logs is not None:
            logs.update(self.scores)

    def _keep_best(self) -> None:
        if self.monitor not in self.scores:
            raise ValueError(f"`monitor` must be one of {sorted(self.scores)}. Received: monitor={self.monitor!r}")
        if self.scores[self.monitor] > self.best_score:
            lost = f"The best weights, of update {current_step(self.model)}, are not kept."
            with warned_of(self.best_weights, lost), averaged_weights(self.model):
                save_model(self.model, self.best_weights)
                self.best_score = self.scores[self.monitor]


class PredictionPictures(IntervalCallback):
    """Saves pictures of predictions to the run's folder and to TensorBoard.

    Args:
        draw_fn: Returns the picture, `(height, width, 3)` uint8: a contact sheet image | truth | prediction.
        run_log: Where to save.
        every_steps: Updates between two pictures; `None` for none by updates.
        every_epochs: Epochs between two pictures; `None` for none by epochs.
        name: Name of the picture's file and of its TensorBoard entry.
    """

    def __init__(
        self,
        draw_fn: Callable[[], np.ndarray],
        run_log: RunLog,
        every_steps: int | None = None,
        every_epochs: int | None = None,
        name: str = "predictions",
    ) -> None:
        super().__init__(every_steps, every_epochs)
        self.draw_fn = draw_fn
        self.run_log = run_log
        self.name = name

    def act(self, step: int, logs: Mapping[str, Any]) -> None:
        self.run_log.picture(self.name, step, self.draw_fn())


def listed(values: Mapping[str, float]) -> str:
    """`name value, name value`, for messages."""
    return ", ".join(f"{name} {value:.4g}" for name, value in values.items())
