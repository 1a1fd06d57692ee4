"""Scores at the original size within Keras' own `fit` and `evaluate`."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import keras

from kmaskformer.evaluation.evaluator import Evaluator
from kmaskformer.evaluation.run import Evaluation
from kmaskformer.evaluation.score_tables import format_scores, summarize


class ScoresCallback(keras.callbacks.Callback):
    """Evaluates the model after epochs of `fit`, and at the end of `evaluate`.

    In `fit` the scores join the logs of the epoch, as `val_semantic/mIoU` and so on, without those of single classes:
    they are in the `History`, and callbacks that come after this one, such as `EarlyStopping` and `ModelCheckpoint`,
    can monitor them. In `evaluate`, whose results Keras has settled by then, they are printed. In both cases `scores`
    holds all of them.

    Args:
        dataset: As in `evaluate`; its batches are read anew each time.
        evaluators: One or several, with different names.
        every_epochs: Epochs of `fit` between two evaluations.

    Raises:
        ValueError: If `every_epochs` is less than 1.

    Example:
        ```python
        scores = ScoresCallback(build_dataset(config.data, split="val"), build_evaluators(config.evaluation))
        best = keras.callbacks.ModelCheckpoint("best.weights.h5", "val_panoptic/PQ", mode="max", save_best_only=True)
        model.fit(dataset, callbacks=[scores, best])
        ```
    """

    def __init__(self, dataset: Iterable, evaluators: Evaluator | Sequence[Evaluator], every_epochs: int = 1) -> None:
        super().__init__()
        if every_epochs < 1:
            raise ValueError(f"`every_epochs` must be a positive integer. Received: every_epochs={every_epochs}")
        self.dataset = dataset
        self.evaluators = evaluators
        self.every_epochs = every_epochs
        self.scores: dict[str, float] = {}
        self._in_fit = False

    def set_model(self, model: Any) -> None:
        super().set_model(model)
        self._evaluation = Evaluation(model, self.evaluators)

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        self._in_fit = True

    def on_train_end(self, logs: dict[str, Any] | None = None) -> None:
        self._in_fit = False

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        if (epoch + 1) % self.every_epochs:
            return
        self.scores = self._evaluation.run(self.dataset, progress=False)
        if logs is not None:
            logs.update({f"val_{key}": value for key, value in summarize(self.scores).items()})

    def on_test_end(self, logs: dict[str, Any] | None = None) -> None:
        # The validation of `fit` ends a test, too; its scores come with the epoch.
        if not self._in_fit:
            self.scores = self._evaluation.run(self.dataset, progress=False)
            print(f"\n{format_scores(self.scores)}", flush=True)
