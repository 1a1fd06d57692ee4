"""A part of a dataset, and a dataset in two parts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from kmaskformer.data.wrapped_reader import WrappedReader
from kmaskformer.structures import Sample


class Subset(WrappedReader):
    """Some samples of a reader, in the order of `indices`."""

    def __init__(self, reader: Any, indices: Sequence[int]) -> None:
        super().__init__(reader)
        self._indices = [int(index) for index in indices]

    def __len__(self) -> int:
        return len(self._indices)

    def __getitem__(self, index: int) -> Sample:
        return self._reader[self.inner_index(index)]

    def inner_index(self, index: int) -> int:
        """The sample of the whole dataset."""
        return self._indices[index]


def split(reader: Any, fraction: float = 0.2, seed: int = 0) -> tuple[Subset, Subset]:
    """Parts a dataset at random into one to train with and one to validate with.

    Args:
        reader: The dataset.
        fraction: Share of the samples in the second part, above 0 and below 1; each part has one at least.
        seed: The same seed gives the same parts.

    Returns:
        The larger or first part and the part of `fraction`, each in the reader's order.

    Raises:
        ValueError: If there are fewer than two samples, or `fraction` is out of range.
    """
    if not 0 < fraction < 1 or len(reader) < 2:
        raise ValueError(
            "`split` needs two samples or more, and a `fraction` above 0 and below 1. "
            f"Received: {len(reader)} samples, fraction={fraction}."
        )
    order = np.random.default_rng(seed).permutation(len(reader))
    count = min(max(round(len(reader) * fraction), 1), len(reader) - 1)
    return Subset(reader, np.sort(order[count:])), Subset(reader, np.sort(order[:count]))
