"""A run that is told to end, as cluster schedulers do before they take a machine away."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Mapping
from types import FrameType
from typing import Any

import keras

from kmaskformer.training.checkpoint import RunCheckpoint
from kmaskformer.training.saving import current_step


class TrainingInterrupted(Exception):
    """The run was told to end and has saved where it stands, or says that it could not."""


class SaveOnSignal(keras.callbacks.Callback):
    """On SIGTERM saves a checkpoint after the current batch and leaves `fit` with an exception.

    An evaluation that is under way ends first. Where several processes train together, a signal to one ends all of
    them after the same batch.

    Args:
        checkpoint: Saves the checkpoint.
        any_worker: From this process's flag to whether it is set in any process of the run.

    Raises:
        TrainingInterrupted: From `fit`.
    """

    def __init__(self, checkpoint: RunCheckpoint, any_worker: Callable[[bool], bool] = bool) -> None:
        super().__init__()
        self.checkpoint = checkpoint
        self.any_worker = any_worker
        self._is_told = False
        self._previous: Any = None

    def on_train_begin(self, logs: Mapping[str, Any] | None = None) -> None:
        if threading.current_thread() is threading.main_thread():  # Python allows handlers nowhere else
            self._previous = signal.signal(signal.SIGTERM, self._note)

    def on_train_batch_end(self, batch: int, logs: Mapping[str, Any] | None = None) -> None:
        if not self.any_worker(self._is_told):
            return
        is_saved = self.checkpoint.save(logs)
        self.restore_handler()
        what = "saved" if is_saved else "not saved, only the checkpoints before are there,"
        raise TrainingInterrupted(f"SIGTERM: {what} after update {current_step(self.model)}. Go on with --resume.")

    def on_train_end(self, logs: Mapping[str, Any] | None = None) -> None:
        self.restore_handler()

    def restore_handler(self) -> None:
        """Lets SIGTERM do what it did before."""
        if self._previous is not None:
            signal.signal(signal.SIGTERM, self._previous)
        self._previous = None

    def _note(self, number: int, frame: FrameType | None) -> None:
        self._is_told = True
