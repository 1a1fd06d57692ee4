"""What a split of a dataset holds: how many images, which classes, and which files cannot be read."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from kmaskformer.data.preparation.conversion import Failure, in_parallel
from kmaskformer.structures import DatasetInfo

_SHOWN = 20


@dataclasses.dataclass(frozen=True)
class SplitReport:
    """The result of a check.

    `images`: those that could be read. `expected`: how many there should be, or 0. `images_of_class`: `(classes,)` in
    how many images each class was seen. `failures`: what could not be read, and why.
    """

    split: str
    info: DatasetInfo
    images: int
    expected: int
    images_of_class: np.ndarray
    failures: list[Failure]

    @property
    def is_usable(self) -> bool:
        """Whether every file could be read, and there is one."""
        return self.images > 0 and not self.failures

    def __str__(self) -> str:
        never = [self.info.class_names[i] for i in np.flatnonzero(self.images_of_class == 0)]
        lines = [f"{self.split}: {self.images} images, {self.info.num_classes - len(never)} of "
                 f"{self.info.num_classes} classes seen"]  # fmt: skip
        if self.expected and self.images + len(self.failures) != self.expected:
            lines[0] += f" (the published split has {self.expected} images)"
        if never:
            lines.append(f"  never seen: {_first(never)}")
        lines += [f"  unreadable: {failure.name}: {failure.reason}" for failure in self.failures]
        return "\n".join(lines)


def check(split: str, reader: Any, expected: int = 0, workers: int = 0) -> SplitReport:
    """Reads every image of a split with its labels.

    Args:
        split: Its name.
        reader: Its reader.
        expected: Number of images that the split is published with; 0 if unknown.
        workers: Images at a time; 0 for one per processor.
    """

    def read(index: int) -> tuple[np.ndarray, Failure | None]:
        try:
            return np.unique(reader[index]["labels"]), None
        # The reader's message names the file; which kind of error a damaged file raises does not matter here.
        except Exception as error:
            return np.zeros(0, int), Failure(f"image {index}", str(error))

    results = in_parallel(read, range(len(reader)), workers, f"check {split}")
    classes = np.concatenate([seen for seen, _ in results]) if results else np.zeros(0, int)
    failures = [failure for _, failure in results if failure]
    counts = np.bincount(classes.astype(int), minlength=reader.info.num_classes)
    return SplitReport(split, reader.info, len(results) - len(failures), expected, counts, failures)


def _first(names: list[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more
