"""The file from which an interrupted evaluation goes on: what it is of, how far it came, what it has counted."""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import keras
import numpy as np

from kmaskformer.evaluation.state import read_state, save_state

_PROGRESS, _SUBJECT, _LAST_IMAGES = "progress", "subject", "last_images"


class Progress(NamedTuple):
    """How far an evaluation came: batches, images that count, failures; and the images of the last batch."""

    batches: int = 0
    images: int = 0
    failures: int = 0
    last_images: tuple[str, ...] = ()


class InterruptedEvaluation:
    """A state file that belongs to one model, one set of evaluators and their options.

    Args:
        path: The file (`.npz`).
        subject: What is evaluated, in words by part, as `subject_of` gives it. A state of something else would make
            one score of two.
    """

    def __init__(self, path: str | Path, subject: Mapping[str, str]) -> None:
        self.path = Path(path)
        self._subject = dict(subject)

    def write(self, counts: Mapping[str, np.ndarray], progress: Progress) -> None:
        """Writes what has been counted; a reader sees the old file or the new one."""
        numbers = np.array(progress[:3], np.int64)
        parts = {
            _PROGRESS: numbers,
            _SUBJECT: np.array(json.dumps(self._subject)),
            _LAST_IMAGES: np.array(progress.last_images, str),
        }
        save_state(self.path, {**counts, **parts})

    def read(self) -> tuple[dict[str, np.ndarray], Progress] | None:
        """What has been counted and how far that is; None where there is no file.

        Raises:
            ValueError: If the file is no such state, or that of an evaluation of something else.
        """
        if not self.path.is_file():
            return None
        state = read_state(self.path)
        parts = [state.pop(key, np.zeros(0)) for key in (_PROGRESS, _SUBJECT, _LAST_IMAGES)]
        numbers, subject, names = parts
        # Without it the evaluation would begin with the first batch and count its images a second time.
        if numbers.shape != (3,) or subject.dtype.kind != "U":
            raise ValueError(
                f"{self.path}: expected the state of an evaluation that was cut off, with `{_PROGRESS}`, 3 numbers "
                f"(batches, images, failures), and `{_SUBJECT}`. Received: {sorted(state)} and {numbers.size} such "
                "numbers. Delete it to evaluate from the start."
            )
        self._check(json.loads(str(subject)))
        return state, Progress(*(int(number) for number in numbers), tuple(names.tolist()))

    def check_continued(self, expected: Sequence[str], images: Sequence[str] | None) -> None:
        """Compares the batch that was counted last with the one that the dataset yields in its place now.

        Raises:
            ValueError: If they differ, or the dataset has ended before (`images` is None).
        """
        if images is None or list(images) != list(expected):
            received = "a dataset that ends before" if images is None else ", ".join(images)
            raise ValueError(
                f"{self.path}: the dataset must yield the same batches as before the interruption, the last one of the "
                f"images {', '.join(expected)}. Received: {received}. Delete the file to evaluate from the start."
            )

    def delete(self) -> None:
        """To be called when all has been counted."""
        self.path.unlink(missing_ok=True)

    def _check(self, subject: Mapping[str, str]) -> None:
        other = [part for part in self._subject if subject.get(part) != self._subject[part]]
        if other:
            raise ValueError(
                f"{self.path}: the state of an evaluation with other {' and '.join(other)}, which cannot be gone on "
                "with. Delete it to evaluate from the start, or evaluate what it is of. "
                f"Received: {', '.join(f'{part} {self._subject[part]} after {subject.get(part)}' for part in other)}"
            )


def subject_of(model: Any, evaluators: Mapping[str, Any], tiling: Any = None) -> dict[str, str]:
    """What an evaluation is of, in words by part: the checksum of the weights, and the options.

    Args:
        model: The model; one without `weights` is taken for any other such.
        evaluators: Evaluators by name.
        tiling: How images are cut into tiles.
    """
    checksum = 0
    for weight in getattr(model, "weights", ()):
        values = np.ascontiguousarray(keras.ops.convert_to_numpy(weight))
        checksum = zlib.crc32(values.reshape(-1).view(np.uint8), checksum)
    options = {name: _options(evaluator) for name, evaluator in evaluators.items()}
    return {"weights": f"{checksum:08x}", "options": f"{options}, tiles {tiling}"}


def _options(evaluator: Any) -> dict[str, Any]:
    """The evaluator's own options; those of the one it wraps, if it does."""
    values = vars(getattr(evaluator, "evaluator", evaluator))
    return {key: value for key, value in values.items() if isinstance(value, bool | int | float | str)}
