"""Label maps in a dataset's own ids, as the classes 0, 1, ... that scores are of."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from kmaskformer.data.images import read_label_map
from kmaskformer.data.label_maps import void_values
from kmaskformer.structures import DatasetInfo

_UNEVALUATED = {"cityscapes_19": range(34)}
"""Ids that a dataset's label maps hold and its scores leave out, beside its classes."""

_HIGHEST = 65535


class LabelIds:
    """Reads label maps whose pixels are `info.dataset_ids`.

    Args:
        info: The label space.

    Raises:
        ValueError: If a class has an id that no label map can hold.

    Attributes:
        void: What stands for unlabelled in the maps that are read; no class is.
        unlabelled_seen: Values for unlabelled pixels that the true maps so far hold.
    """

    def __init__(self, info: DatasetInfo) -> None:
        if not (min(info.dataset_ids) >= 0 and max(info.dataset_ids) <= _HIGHEST):
            raise ValueError(f"'{info.name}': ids of classes must lie in 0..{_HIGHEST}. Received: {info.dataset_ids}")
        self._info = info
        # Bytes where they suffice: statistics over them are the fastest.
        self.void, dtype = (255, np.uint8) if info.num_classes <= 255 else (_HIGHEST, np.uint16)
        self._classes = np.full(_HIGHEST + 1, self.void, dtype)
        self._classes[list(info.dataset_ids)] = np.arange(info.num_classes)
        self._known = np.zeros(_HIGHEST + 1, bool)
        self._known[[*info.dataset_ids, *self._unlabelled()]] = True
        self.unlabelled_seen: set[int] = set()

    def read_predicted(self, path: Path) -> np.ndarray:
        """`(height, width)` class ids; whatever is no class is `void`."""
        return self._classes[_checked(read_label_map(path), path)]

    def read_true(self, path: Path) -> np.ndarray:
        """`(height, width)` class ids and `void`.

        Raises:
            ValueError: If a value is neither a class nor one for unlabelled pixels: other classes may be meant.
        """
        values = _checked(read_label_map(path), path)
        unknown = ~self._known[values]
        if unknown.any():
            ids, info = self._info.dataset_ids, self._info
            raise ValueError(
                f"{path}: the truth must hold ids of the {info.num_classes} classes of '{info.name}' "
                f"({min(ids)}..{max(ids)}) or {sorted(void_values(info))} for unlabelled. "
                f"Received: {np.unique(values[unknown])[:5].tolist()}; check the label space and its ignore value."
            )
        classes = self._classes[values]
        self.unlabelled_seen.update(np.unique(values[classes == self.void]).tolist())
        return classes

    def _unlabelled(self) -> set[int]:
        further = _UNEVALUATED.get(self._info.name, ())
        return {value for value in (*void_values(self._info), *further) if 0 <= value <= _HIGHEST}


def _checked(values: np.ndarray, path: Path) -> np.ndarray:
    if values.size and not (values.min() >= 0 and values.max() <= _HIGHEST):
        raise ValueError(f"{path}: ids must lie in 0..{_HIGHEST}. Received: {values.min()}..{values.max()}")
    return values
