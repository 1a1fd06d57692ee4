"""The numbers and pictures of a run, as files in its folder: JSON lines, CSV and TensorBoard."""

from __future__ import annotations

import csv
import importlib.util
import io
import json
import math
import os
import time
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from kmaskformer.extras import how_to_install
from kmaskformer.training.unwritten import warned_of
from kmaskformer.whole_files import append_whole, written_to_disk

_FIXED_COLUMNS = ("step", "kind", "time")


class RunLog:
    """Appends the metrics of a run to `metrics.jsonl`, `metrics.csv` and `tensorboard/`, its pictures to `pictures/`.

    A row has the optimizer update it belongs to (`step`), a `kind` (`train`, `evaluation`), the `time` in seconds
    since 1970, and the values. TensorBoard shows `kind/name`. Every row is in the files when `write` returns. On a
    full disk there is a warning instead, and rows wait until there is space, `close` at the latest.

    Args:
        folder: The run's folder; created when missing.
        start_step: Update from which the run goes on. Rows of later updates are dropped, since a resumed run does
            those again; 0 starts the files anew.
        tensorboard: Whether to write TensorBoard events. Where the package tensorboard is not installed, a warning
            says so and the rest is written.
    """

    def __init__(self, folder: str | os.PathLike, start_step: int = 0, tensorboard: bool = True) -> None:
        self.folder = Path(folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        self._columns: list[str] = []
        self._waiting: list[tuple[dict[str, Any], dict[str, float]]] = []
        self._writer = None
        self._tensorboard = tensorboard and _tensorboard_is_installed()
        kept = [row for row in self.rows() if row["step"] <= start_step] if start_step else []
        with written_to_disk(self._json_path) as path:
            path.write_text("".join(json.dumps(row) + "\n" for row in kept))
        self._rewrite_csv(kept)

    @property
    def _json_path(self) -> Path:
        return self.folder / "metrics.jsonl"

    @property
    def _csv_path(self) -> Path:
        return self.folder / "metrics.csv"

    def rows(self, kind: str | None = None) -> list[dict[str, Any]]:
        """The rows so far, oldest first; of one `kind` if given. A value that was not finite is `None`."""
        lines = self._json_path.read_text().splitlines() if self._json_path.exists() else []
        rows = [*map(_parse, lines), *(row for row, _ in self._waiting)]
        return [row for row in rows if row is not None and kind in (None, row["kind"])]

    def write(self, kind: str, step: int, values: Mapping[str, Any]) -> None:
        """Appends one row.

        Args:
            kind: What the values are: `train` or `evaluation`.
            step: Optimizer update after which they were taken.
            values: Name to number; entries that are not single numbers are left out.
        """
        numbers = scalars(values)
        finite = {name: value if math.isfinite(value) else None for name, value in numbers.items()}
        row = {"step": int(step), "kind": kind, "time": round(time.time(), 3), **finite}
        self._waiting.append((row, {f"{kind}/{name}": value for name, value in numbers.items()}))
        self._write_waiting()

    def picture(self, name: str, step: int, image: np.ndarray) -> Path:
        """Saves an image as `pictures/<name>_<step>.png` and shows it in TensorBoard as `name`.

        Args:
            name: What the picture shows, part of the file name.
            step: Optimizer update after which it was drawn.
            image: `(height, width, 3)` uint8, or a PIL image.

        Returns:
            Path of the PNG. Where it cannot be written, there is a warning.
        """
        image = np.asarray(image)
        if image.ndim != 3 or image.shape[-1] != 3 or image.dtype != np.uint8:
            raise ValueError(f"`image` must be (height, width, 3) uint8. Received: {image.shape} {image.dtype}")
        path = self.folder / "pictures" / f"{name}_{int(step):07d}.png"
        with warned_of(path, "The run goes on without this picture."):
            path.parent.mkdir(exist_ok=True)
            with written_to_disk(path) as aside:
                Image.fromarray(image).save(aside)
            if self._tensorboard:
                self._show("image", {name: image[None]}, step)
        return path

    def close(self) -> None:
        """Writes the rows that wait, and closes the TensorBoard file; a later `write` opens another."""
        if self._waiting:
            self._write_waiting()
        self._close_events()

    def _write_waiting(self) -> None:
        written: list[tuple[dict[str, Any], dict[str, float]]] = []
        with warned_of(self._json_path, "Its rows wait until there is space, or until the run ends."):
            append_whole(self._json_path, "".join(json.dumps(row) + "\n" for row, _ in self._waiting))
            written, self._waiting = self._waiting, []
        if not written:
            self._close_events()  # whose file may be cut off, which would hide what came after
            return
        self._append_csv([row for row, _ in written])
        for row, values in written if self._tensorboard else ():
            self._show("scalar", values, row["step"])

    def _append_csv(self, rows: list[dict[str, Any]]) -> None:
        columns, self._columns = self._columns, []  # after an error the next rows write the file anew
        with warned_of(self._csv_path, "It is written with the next row for which there is space."):
            if not all(set(row) <= set(columns) for row in rows):
                self._rewrite_csv(self.rows())
                return
            text = io.StringIO(newline="")
            csv.DictWriter(text, columns).writerows(rows)
            append_whole(self._csv_path, text.getvalue())
            self._columns = columns

    def _rewrite_csv(self, rows: list[dict[str, Any]]) -> None:
        columns = list(dict.fromkeys([*_FIXED_COLUMNS, *(name for row in rows for name in row)]))
        with written_to_disk(self._csv_path) as path, path.open("w", newline="") as file:
            writer = csv.DictWriter(file, columns)
            writer.writeheader()
            writer.writerows(rows)
        self._columns = columns

    def _show(self, kind: str, values: Mapping[str, Any], step: int) -> None:
        """Writes TensorBoard events: `kind` is the name of a function of `tf.summary`."""
        import tensorflow as tf

        folder = self.folder / "tensorboard"
        with warned_of(folder, "TensorBoard will not show these values."):
            try:
                self._writer = self._writer or tf.summary.create_file_writer(str(folder))
                with self._writer.as_default():
                    for name, value in values.items():
                        getattr(tf.summary, kind)(name, value, step=step)
                self._writer.flush()
            except tf.errors.OpError as error:
                self._writer = None
                raise OSError(error.message) from error

    def _close_events(self) -> None:
        if self._writer is not None:
            self._writer.close()
        self._writer = None


def scalars(values: Mapping[str, Any]) -> dict[str, float]:
    """The entries of `values` that are single numbers, as floats."""
    arrays = {name: np.asarray(value) for name, value in values.items()}
    return {name: float(array) for name, array in arrays.items() if array.ndim == 0 and array.dtype.kind in "fiub"}


def _parse(line: str) -> dict[str, Any] | None:
    """The row of a line, or `None` for a line that was cut off when the run was killed."""
    try:
        return json.loads(line)
    except json.JSONDecodeError:
        return None


def _tensorboard_is_installed() -> bool:
    missing = [name for name in ("tensorflow", "tensorboard") if importlib.util.find_spec(name) is None]
    if missing:
        warnings.warn(
            f"No TensorBoard logs are written, because {' and '.join(missing)} is not installed. "
            f"{how_to_install('tensorboard')}",
            stacklevel=3,
        )
    return not missing
