"""Going on where a sample cannot be read, with a list of what was left out."""

from __future__ import annotations

import threading
from typing import Any

from kmaskformer.data.printable import printable
from kmaskformer.data.wrapped_reader import WrappedReader
from kmaskformer.structures import Sample

ON_ERROR = ("raise", "skip")


class SkippingReader(WrappedReader):
    """A reader that gives the next sample which can be read in place of one which cannot.

    So the number of samples stays, and with it which batch holds what. `skipped` tells which were replaced and why, as
    far as they have been asked for. Only what a broken file or record causes is skipped (`OSError`, `ValueError`).

    Args:
        reader: The dataset.
    """

    def __init__(self, reader: Any) -> None:
        super().__init__(reader)
        self.skipped: dict[int, str] = {}
        self._lock = threading.Lock()

    def __getitem__(self, index: int) -> Sample:
        return self._first_from(index)[1]

    def given_index(self, index: int) -> int:
        """Which sample `reader[index]` is: itself, or the one in its place; reads it to know.

        Raises:
            ValueError: If no sample can be read.
        """
        return self._first_from(index)[0]

    def _first_from(self, index: int) -> tuple[int, Sample]:
        """The first sample from `index` on that can be read, behind its own index."""
        for candidate in [*range(index, len(self)), *range(index)]:
            sample = self.get(candidate)
            if sample is not None:
                return candidate, sample
        raise ValueError(
            f"None of the {len(self)} samples of '{self.info.name}' can be read. First failure: {self.skipped[index]}"
        )

    def get(self, index: int) -> Sample | None:
        """The sample itself, or None where it cannot be read."""
        if index in self.skipped:
            return None
        try:
            return self._reader[index]
        except (OSError, ValueError) as error:
            with self._lock:
                self.skipped[index] = printable(str(error))
            return None

    def report(self) -> str:
        """How many samples were left out, and the reason of each; empty if none."""
        if not self.skipped:
            return ""
        reasons = "\n".join(f"  {index}: {self.skipped[index]}" for index in sorted(self.skipped))
        return f"{len(self.skipped)} of {len(self)} samples of '{self.info.name}' were left out:\n{reasons}"


def check_on_error(on_error: str) -> None:
    """Refuses an unknown way of dealing with samples that cannot be read."""
    if on_error not in ON_ERROR:
        raise ValueError(f'`on_error` must be "raise" or "skip". Received: on_error={on_error!r}.')
