"""The numbers and pictures of a run, as files in its folder: JSON lines, CSV and TensorBoard."""

from __future__ import annotations

import csv
import importlib.util
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
from kmaskformer.whole_files import written_to_disk

_FIXED_COLUMNS = ("step", "kind", "time")


class RunLog:
    """Appends the metrics of a run to `metrics.jsonl`, `metrics.csv` and `tensorboard/`, its pictures to `pictures/`.

    A row has the optimizer update it belongs to (`step`), a `kind` (`train`, `evaluation`), the `time` in seconds
    since 1970, and the values. TensorBoard shows `kind/name`. Every row is on disk when `write` returns.

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
        if not self._json_path.exists():
            return []
        rows = [_parse(line) for line in self._json_path.read_text().splitlines()]
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
        with self._json_path.open("a") as file:
            file.write(json.dumps(row) + "\n")
        self._append_csv(row)
        if self._tensorboard:
            self._write_events(step, {f"{kind}/{name}": value for name, value in numbers.items()})

    def picture(self, name: str, step: int, image: np.ndarray) -> Path:
        """Saves an image as `pictures/<name>_<step>.png` and shows it in TensorBoard as `name`.

        Args:
            name: What the picture shows, part of the file name.
            step: Optimizer update after which it was drawn.
            image: `(height, width, 3)` uint8, or a PIL image.

        Returns:
            Path of the PNG.
        """
        image = np.asarray(image)
        if image.ndim != 3 or image.shape[-1] != 3 or image.dtype != np.uint8:
            raise ValueError(f"`image` must be (height, width, 3) uint8. Received: {image.shape} {image.dtype}")
        path = self.folder / "pictures" / f"{name}_{int(step):07d}.png"
        path.parent.mkdir(exist_ok=True)
        with written_to_disk(path) as aside:
            Image.fromarray(image).save(aside)
        if self._tensorboard:
            import tensorflow as tf

            with self._events().as_default():
                tf.summary.image(name, image[None], step=step)
        return path

    def close(self) -> None:
        """Closes the TensorBoard file; a later `write` opens another."""
        if self._writer is not None:
            self._writer.close()
        self._writer = None

    def _append_csv(self, row: dict[str, Any]) -> None:
        if not set(row) <= set(self._columns):
            self._rewrite_csv(self.rows())
            return
        with self._csv_path.open("a", newline="") as file:
            csv.DictWriter(file, self._columns).writerow(row)

    def _rewrite_csv(self, rows: list[dict[str, Any]]) -> None:
        self._columns = list(dict.fromkeys([*_FIXED_COLUMNS, *(name for row in rows for name in row)]))
        with written_to_disk(self._csv_path) as path, path.open("w", newline="") as file:
            writer = csv.DictWriter(file, self._columns)
            writer.writeheader()
            writer.writerows(rows)

    def _write_events(self, step: int, values: dict[str, float]) -> None:
        import tensorflow as tf

        with self._events().as_default():
            for name, value in values.items():
                tf.summary.scalar(name, value, step=step)
        self._events().flush()

    def _events(self) -> Any:
        import tensorflow as tf

        if self._writer is None:
            self._writer = tf.summary.create_file_writer(str(self.folder / "tensorboard"))
        return self._writer


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
