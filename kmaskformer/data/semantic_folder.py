"""Reader of a folder of images with semantic label PNGs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from kmaskformer.data import files, images
from kmaskformer.data.label_maps import segments_of_classes
from kmaskformer.structures import DatasetInfo, Sample


class SemanticFolder:
    """Images with label maps whose pixels are class ids; one segment for each class in an image.

    Label maps hold `info.dataset_ids` (0, 1, ... unless the dataset numbers its classes otherwise).
    `info.ignore_value` and 255 (65535 in 16-bit maps) are void where no class has that id.

    Args:
        images: Glob pattern relative to `root`, a folder, or a list of paths.
        labels: Pattern with `{stem}` (and `{folder}`), a folder, or a list of paths; see `files.list_pairs`.
        info: The label space.
        root: Folder of the dataset.
        limit: Only the first `limit` images; 0 for all.
        require_labels: Whether an image without a label map is an error now, and not only when it is read.
        least_edge: If not 0, JPEG files may be decoded at a reduced size; see `images.read_pair`.

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
        require_labels: bool = True,
        least_edge: int = 0,
    ) -> None:
        self._least_edge = least_edge
        self.info = info
        self.pairs = files.list_pairs(images, labels, root, limit, require_labels)

    def __len__(self) -> int:
        return len(self.pairs)

    def files(self, index: int) -> tuple[Path, ...]:
        """The files of a sample: image and label map."""
        return (self.pairs[index].image, self.pairs[index].labels)

    def label_file(self, index: int) -> Path:
        """The label map of a sample, for those who want the stored values."""
        return self.pairs[index].labels

    def __getitem__(self, index: int) -> Sample:
        pair = self.pairs[index]
        image, label_map = images.read_pair(pair.image, pair.labels, least_edge=self._least_edge)
        segment_map, labels = segments_of_classes(label_map, self.info, pair.labels)
        is_crowd = np.zeros(len(labels), bool)
        return Sample(image=image, segment_map=segment_map, labels=labels, is_crowd=is_crowd, image_id=pair.image_id)
