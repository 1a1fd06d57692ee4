"""Reader of a folder of images with instance-id PNGs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from kmaskformer.data import files, images
from kmaskformer.structures import VOID, DatasetInfo, Sample


class InstanceFolder:
    """Images with maps whose pixels are instance ids; each id is one segment, 0 is background.

    Args:
        images: Glob pattern relative to `root`, a folder, or a list of paths.
        labels: Pattern with `{stem}` (and `{folder}`), a folder, or a list of paths; see `files.list_pairs`. Maps are
            8- or 16-bit PNG or 32-bit TIFF.
        info: The label space.
        root: Folder of the dataset.
        background: Name of the stuff class of pixels that hold 0; `None` makes them void.
        class_divisor: How the id tells the class: `id // class_divisor` is the dataset's class id
            (`info.ignore_value` is void). 0 where it does not: then all instances are of `info`'s one thing class.
        limit: Only the first `limit` images; 0 for all.
        require_labels: Whether an image without a map is an error now, and not only when it is read.
        least_edge: If not 0, JPEG files may be decoded at a reduced size; see `images.read_pair`.

    Raises:
        FileNotFoundError: If nothing matches, or an image has no map.
        ValueError: If `background` is no stuff class, or `class_divisor` is needed to tell the classes apart.

    Example:
        >>> info = DatasetInfo("nuclei", ("background", "nucleus"), thing_ids=(1,))
        >>> reader = InstanceFolder("images/*.png", "instances/{stem}.png", info, "nuclei", background="background")
    """

    def __init__(
        self,
        images: str | Sequence[str],
        labels: str | Sequence[str],
        info: DatasetInfo,
        root: str | Path = ".",
        background: str | None = None,
        class_divisor: int = 0,
        limit: int = 0,
        require_labels: bool = True,
        least_edge: int = 0,
    ) -> None:
        self._least_edge = least_edge
        self.info = info
        self.class_divisor = class_divisor
        self._background_id = _background_id(info, background)
        if class_divisor < 0 or (class_divisor == 0 and len(info.thing_ids) != 1):
            names = [info.class_names[index] for index in info.thing_ids]
            raise ValueError(
                "`class_divisor` must be positive, unless the dataset has exactly one thing class, which all instances "
                f"then are of. Received: class_divisor={class_divisor}, thing classes {names}."
            )
        self.pairs = files.list_pairs(images, labels, root, limit, require_labels)

    def __len__(self) -> int:
        return len(self.pairs)

    def files(self, index: int) -> tuple[Path, ...]:
        """The files of a sample: image and instance map."""
        return (self.pairs[index].image, self.pairs[index].labels)

    def label_file(self, index: int) -> Path:
        """The instance map of a sample, for those who want the stored values."""
        return self.pairs[index].labels

    def __getitem__(self, index: int) -> Sample:
        pair = self.pairs[index]
        image, id_map = images.read_pair(pair.image, pair.labels, least_edge=self._least_edge)
        ids, rows = _distinct(id_map, pair.labels)
        labels = self._classes(ids, pair.labels)
        kept = labels != VOID
        table = np.where(kept, np.cumsum(kept) - 1, VOID).astype(np.int32)
        return Sample(
            image=image,
            segment_map=table[rows],
            labels=labels[kept],
            is_crowd=np.zeros(int(kept.sum()), bool),
            image_id=pair.image_id,
        )

    def _classes(self, ids: np.ndarray, path: Path) -> np.ndarray:
        """Contiguous class id of each instance id, or void."""
        if not self.class_divisor:
            return np.where(ids == 0, self._background_id, self.info.thing_ids[0]).astype(np.int32)
        known = {self.info.ignore_value: VOID} | self.info.contiguous_ids
        unknown = [int(value) for value in ids if value and value // self.class_divisor not in known]
        if unknown:
            raise ValueError(
                f"{path}: id // {self.class_divisor} must be a class id of '{self.info.name}' "
                f"({min(known)}..{max(known)}). Received: instance ids {unknown[:10]}. "
                "Correct `class_divisor` or the class list."
            )
        classes = [known[value // self.class_divisor] if value else self._background_id for value in ids.tolist()]
        return np.asarray(classes, np.int32)


def _distinct(id_map: np.ndarray, path: Path) -> tuple[np.ndarray, np.ndarray]:
    """The ids that occur, in increasing order, and for each pixel the row of its id."""
    if id_map.min() < 0:
        raise ValueError(f"{path}: instance ids must not be negative. Received: {id_map.min()}.")
    if id_map.max() > 2**20:
        ids, rows = np.unique(id_map, return_inverse=True)
        return ids, rows.reshape(id_map.shape)
    # Counting is ten times as fast as sorting all pixels, but needs a table as long as the largest id.
    present = np.bincount(id_map.ravel()) > 0
    return np.flatnonzero(present), (np.cumsum(present) - 1)[id_map]


def _background_id(info: DatasetInfo, background: str | None) -> int:
    if background is None:
        return VOID
    stuff = [info.class_names[index] for index in info.stuff_ids]
    if background not in stuff:
        raise ValueError(
            f"`background` must name a stuff class of '{info.name}' ({', '.join(stuff) or 'it has none'}) or be None. "
            f"Received: background={background!r}."
        )
    return info.class_names.index(background)
