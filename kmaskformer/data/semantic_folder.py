"""Reader of a folder of images with semantic label PNGs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from kmaskformer.data import files, images
from kmaskformer.structures import VOID, DatasetInfo, Sample


class SemanticFolder:
    """Images with label maps whose pixels are class ids; one segment for each class in an image.

    Label maps hold `info.dataset_ids` (0, 1, ... unless the dataset numbers its classes otherwise).
    `info.ignore_value` and 255 (65535 in 16-bit maps) are void where no class has that id.

    Args:
        images: Glob pattern relative to `root`, or a list of paths.
        labels: Pattern with `{stem}` (and `{folder}`), or a list of paths; see `files.list_pairs`.
        info: The label space.
        root: Folder of the dataset.
        limit: Only the first `limit` images; 0 for all.

    Raises:
        FileNotFoundError: If nothing matches, or an image has no label map.

    Example:
        >>> reader = SemanticFolder("images/*.jpg", "labels/{stem}.png", info, root="camvid/train")
        >>> sample = reader[0]
    """

    def __init__(
        self,
        images: str | Sequence[str],
        labels: str | Sequence[str],
        info: DatasetInfo,
        root: str | Path = ".",
        limit: int = 0,
    ) -> None:
        self.info = info
        self.pairs = files.list_pairs(images, labels, root, limit)
        self._void_values = {info.ignore_value, 255, 65535} - set(info.dataset_ids)
        self._contiguous = {dataset_id: index for index, dataset_id in enumerate(info.dataset_ids)}

    def __len__(self) -> int:
        return len(self.pairs)

    def image_path(self, index: int) -> Path:
        """File of an image."""
        return self.pairs[index].image

    def __getitem__(self, index: int) -> Sample:
        pair = self.pairs[index]
        image, label_map = images.read_pair(pair.image, pair.labels)
        segment_map, labels = self._segments(label_map, pair.labels)
        is_crowd = np.zeros(len(labels), bool)
        return Sample(image=image, segment_map=segment_map, labels=labels, is_crowd=is_crowd, image_id=pair.image_id)

    def _segments(self, label_map: np.ndarray, path: Path) -> tuple[np.ndarray, np.ndarray]:
        """Segment map and labels; the segments are in the order of the class ids."""
        if label_map.min() < 0 or label_map.max() > 65535:
            raise ValueError(f"{path}: class ids must lie in 0..65535. Received: {label_map.min()}..{label_map.max()}.")
        values = np.flatnonzero(np.bincount(label_map.ravel()))
        unknown = [int(value) for value in values if value not in self._contiguous and value not in self._void_values]
        if unknown:
            raise ValueError(self._unknown_message(unknown, label_map, path))
        labels = sorted(self._contiguous[value] for value in values.tolist() if value in self._contiguous)
        table = np.full(int(label_map.max()) + 1, VOID, np.int32)
        table[[self.info.dataset_ids[label] for label in labels]] = np.arange(len(labels))
        return table[label_map], np.asarray(labels, np.int32)

    def _unknown_message(self, unknown: list[int], label_map: np.ndarray, path: Path) -> str:
        ids = self.info.dataset_ids
        pixels = int(np.isin(label_map, unknown).sum())
        return (
            f"{path}: label maps of '{self.info.name}' must hold ids of its {self.info.num_classes} classes "
            f"({min(ids)}..{max(ids)}) or {sorted(self._void_values)} for unlabelled. Received: {unknown[:10]} "
            f"({pixels} pixels). Add the missing classes to the class list, or set its `ignore` value."
        )
