"""What a run does about a loss or gradient that is NaN, infinite or far out of the ordinary."""

from __future__ import annotations

import collections
import json
import math
import statistics
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import keras

from kmaskformer.training.callbacks import listed
from kmaskformer.training.run_log import scalars
from kmaskformer.training.saving import current_step
from kmaskformer.training.unwritten import warned_of
from kmaskformer.whole_files import append_whole

ON_NAN = ("stop", "skip")
BATCHES_FILE = "suspicious_batches.jsonl"
"""File in a run's folder: one line for each batch whose loss or gradient was not finite, or an outlier."""

_MOST_IN_A_ROW = 20
_OUTLIER_FACTOR = 100.0
_OUTLIER_MEMORY = 100


class NonFiniteLossError(ArithmeticError):
    """The loss or the gradient became NaN or infinite."""


class WatchForNonFinite(keras.callbacks.Callback):
    """Names the loss term or gradient that is not finite, writes down its batch, and ends the run or goes on.

    An error leaves `fit` before any callback saves weights, so that the last checkpoint is a good one. A value of more
    than 100 times the median of the last 100 batches is an outlier: it is written down, with a warning, and no more.

    Args:
        on_nan: `"stop"`, or `"skip"` where the optimizer leaves such an update out (`skip_nonfinite`, or loss scaling).
        folder: The run's folder, for `suspicious_batches.jsonl`; `None` to write nothing.
        images_of: From the number of a batch since the start of the run to the names of its images.
        first_batch: Number of the first batch, where a run is resumed.

    Raises:
        ValueError: If `on_nan` is unknown.
        NonFiniteLossError: From `fit`, after the first batch with a NaN or infinite entry in its logs; with `"skip"`,
            after 20 such batches in a row.
    """

    def __init__(
        self,
        on_nan: str = "stop",
        folder: str | Path | None = None,
        images_of: Callable[[int], Sequence[str]] | None = None,
        first_batch: int = 0,
    ) -> None:
        super().__init__()
        if on_nan not in ON_NAN:
            raise ValueError(f"`on_nan` must be one of {', '.join(ON_NAN)}. Received: on_nan={on_nan!r}")
        self.on_nan = on_nan
        self.folder = None if folder is None else Path(folder)
        self.images_of = images_of
        self._batch = first_batch - 1
        self._in_a_row = 0
        self._recent = {name: collections.deque(maxlen=_OUTLIER_MEMORY) for name in ("loss", "gradient_norm")}

    def on_train_batch_end(self, batch: int, logs: Mapping[str, Any] | None = None) -> None:
        self._batch += 1
        bad = nonfinite_terms(logs)
        if not bad:
            self._in_a_row = 0
            self._note_outliers(scalars(logs or {}))
            return
        self._in_a_row += 1
        images = self._write_down("not finite", bad)
        if self.on_nan == "stop" or self._in_a_row >= _MOST_IN_A_ROW:
            raise NonFiniteLossError(self._message(bad, scalars(logs or {}), images))
        step = current_step(self.model)
        warnings.warn(f"Update {step} is skipped: {listed(bad)} in the batch of {images}", RuntimeWarning, stacklevel=2)

    def _message(self, bad: Mapping[str, float], all_terms: Mapping[str, float], images: str) -> str:
        others = {name: value for name, value in all_terms.items() if name not in bad}
        hint = ", or leave such batches out with --on-nan skip" if self.on_nan == "stop" else ""
        rows = f" {self._in_a_row} batches in a row were not finite." if self._in_a_row > 1 else ""
        return (
            f"Update {current_step(self.model)}: {listed(bad)}.{rows} The run stops; saved weights are untouched. "
            f"Finite: {listed(others) or 'nothing'}. Images of the batch: {images}. "
            "A lower learning rate, a longer warm-up or float32 instead of float16 usually helps; "
            f"check these images and their labels too{hint}."
        )

    def _note_outliers(self, values: Mapping[str, float]) -> None:
        for name, recent in self._recent.items():
            if name not in values:
                continue
            if len(recent) >= _OUTLIER_MEMORY // 5 and values[name] > _OUTLIER_FACTOR * statistics.median(recent):
                images = self._write_down("outlier", {name: values[name]})
                message = (
                    f"Update {current_step(self.model)}: {name} {values[name]:.4g} is an outlier; batch of {images}"
                )
                warnings.warn(message, RuntimeWarning, stacklevel=3)
            recent.append(values[name])

    def _write_down(self, kind: str, terms: Mapping[str, float]) -> str:
        """Writes a line about the current batch, and returns its images as text."""
        images = self._images()
        if self.folder is not None:
            row = {"step": current_step(self.model), "batch": self._batch, "kind": kind}
            row |= {"terms": {name: str(value) for name, value in terms.items()}, "images": images}
            path = self.folder / BATCHES_FILE
            with warned_of(path, f"It lacks batch {self._batch}."):
                append_whole(path, json.dumps(row) + "\n")
        return ", ".join(images) or "unknown images"

    def _images(self) -> list[str]:
        """Names of the current batch's images, none where they cannot be told: what is wrong with it says more."""
        try:
            return list(self.images_of(self._batch)) if self.images_of else []
        except Exception as error:
            warnings.warn(f"The images of batch {self._batch} cannot be named: {error}", RuntimeWarning, stacklevel=2)
            return []


def nonfinite_terms(logs: Mapping[str, Any] | None) -> dict[str, float]:
    """The entries of `logs` that are NaN or infinite, single terms before the total loss and the gradient."""
    bad = {name: value for name, value in scalars(logs or {}).items() if not math.isfinite(value)}
    last = ("loss", "gradient_norm")
    return dict(sorted(bad.items(), key=lambda item: last.index(item[0]) if item[0] in last else -1))
