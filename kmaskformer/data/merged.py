"""Semantic truth from data with instances: all segments of a class become one."""

from __future__ import annotations

from typing import Any

import numpy as np

from kmaskformer.data.overlaps import settle_overlaps
from kmaskformer.data.wrapped_reader import WrappedReader
from kmaskformer.structures import VOID, Sample


class MergedSegments(WrappedReader):
    """A reader whose samples have one segment per class, as the masks of semantic segmentation are defined.

    Crowd segments belong to their class like all others. Where segments overlap, a pixel has the class of the smallest
    one.

    Args:
        reader: Any reader.

    Example:
        >>> from kmaskformer.data.synthetic import Shapes
        >>> labels = MergedSegments(Shapes(1, image_size=(96, 96)))[0]["labels"]
        >>> len(labels) == len(set(labels.tolist()))
        True
    """

    def __init__(self, reader: Any) -> None:
        super().__init__(reader)
        self.has_overlaps = False

    def __getitem__(self, index: int) -> Sample:
        sample = settle_overlaps(self._reader[index])
        labels, rows = np.unique(sample["labels"], return_inverse=True)
        segment_map = np.append(rows, VOID).astype(np.int32)[sample["segment_map"]]  # VOID is -1, the last entry
        return Sample(
            image=sample["image"],
            segment_map=segment_map,
            labels=labels.astype(np.int32),
            is_crowd=np.zeros(len(labels), bool),
            image_id=sample["image_id"],
        )
