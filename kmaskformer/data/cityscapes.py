"""Readers of Cityscapes as its zip files unpack: `leftImg8bit/train/<city>/*.png` and `gtFine/train/<city>/*.png`."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from kmaskformer.data import images as image_files
from kmaskformer.data.arguments import refuse_negative
from kmaskformer.data.files import Pair
from kmaskformer.data.label_spaces import label_space
from kmaskformer.structures import VOID, DatasetInfo, Sample

_NUM_IDS = 34
"""The dataset numbers its classes 0..33; those that are not in the label space are void."""
_UNDRAWN = 255
_INSTANCE = 1000
"""An instance is class * 1000 + number; ids below are classes, those of things regions of many objects."""


class Cityscapes:
    """Cityscapes, semantic or panoptic.

    Semantic samples have one segment for each class in an image, from `*_labelIds.png`; `*_labelTrainIds.png` need not
    be made. Panoptic samples have the segments of `*_instanceIds.png`, where things without a number are crowds, as the
    official `createPanopticImgs.py` makes them, which need not be run either.

    Args:
        images: Folder of a split's images, with one folder per city.
        labels: Folder of its labels, likewise; of `gtFine` or `gtCoarse`.
        panoptic: Whether instances are told apart.
        info: The label space, whose `dataset_ids` are Cityscapes' own ids; by default the 19 evaluated classes.
        root: Folder to which both refer.
        limit: Only the first `limit` images, in the order of their names; 0 for all.

    Raises:
        FileNotFoundError: If a folder holds no files, or an image has no label file.

    Example:
        >>> reader = Cityscapes("leftImg8bit/val", "gtFine/val", panoptic=True, root="/data/cityscapes")
    """

    def __init__(
        self,
        images: str | Path,
        labels: str | Path,
        panoptic: bool = False,
        info: DatasetInfo | None = None,
        root: str | Path = ".",
        limit: int = 0,
    ) -> None:
        refuse_negative(limit=limit)
        self.info = info or label_space("cityscapes_19")
        self.panoptic = panoptic
        ending = "_instanceIds.png" if panoptic else "_labelIds.png"
        self.pairs = _list_pairs(Path(root) / images, Path(root) / labels, ending)
        self.pairs = self.pairs[:limit] if limit else self.pairs
        self._classes = np.full(_NUM_IDS, VOID, np.int32)
        self._classes[list(self.info.dataset_ids)] = np.arange(self.info.num_classes)

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> Sample:
        pair = self.pairs[index]
        image, id_map = image_files.read_pair(pair.image, pair.labels)
        ids = np.flatnonzero(np.bincount(id_map.ravel()))
        classes = self._classes_of(ids, pair.labels)
        rows, labels, is_crowd = self._instances(ids, classes) if self.panoptic else _one_segment_a_class(classes)
        table = np.full(ids[-1] + 1, VOID, np.int32)
        table[ids] = rows
        return Sample(image=image, segment_map=table[id_map], labels=labels, is_crowd=is_crowd, image_id=pair.image_id)

    def files(self, index: int) -> tuple[Path, ...]:
        """The files of a sample: image and labels."""
        return (self.pairs[index].image, self.pairs[index].labels)

    def _classes_of(self, ids: np.ndarray, path: Path) -> np.ndarray:
        """Contiguous class of each id, or void."""
        class_ids = np.where(ids < _INSTANCE, ids, ids // _INSTANCE)
        strange = ids[(class_ids >= _NUM_IDS) & (ids != _UNDRAWN)]
        if strange.size:
            raise ValueError(
                f"{path}: ids must be those of Cityscapes, 0..{_NUM_IDS - 1}, or class * {_INSTANCE} + number of an "
                f"instance. Received: {strange[:10].tolist()}. Get the file again, or read maps of another kind with "
                "the source semantic_folder."
            )
        return np.where(ids == _UNDRAWN, VOID, self._classes[np.minimum(class_ids, _NUM_IDS - 1)])

    def _instances(self, ids: np.ndarray, classes: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """One segment for each id: its row for each id, and labels and crowds."""
        kept = classes != VOID
        labels = classes[kept].astype(np.int32)
        is_crowd = (ids[kept] < _INSTANCE) & np.isin(labels, self.info.thing_ids)
        return np.where(kept, np.cumsum(kept) - 1, VOID), labels, is_crowd


def _one_segment_a_class(classes: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    labels = np.unique(classes[classes != VOID]).astype(np.int32)
    rows = np.where(classes == VOID, VOID, np.searchsorted(labels, classes))
    return rows, labels, np.zeros(len(labels), bool)


def _list_pairs(images: Path, labels: Path, ending: str) -> list[Pair]:
    """Images and label files belong together by city, sequence and frame."""
    image_paths, label_paths = (sorted(folder.glob("*/*.png")) for folder in (images, labels))
    label_paths = [path for path in label_paths if path.name.endswith(ending)]
    for folder, paths, kind in ((images, image_paths, "*.png"), (labels, label_paths, f"*{ending}")):
        if not paths:
            raise FileNotFoundError(
                f"{folder}: no files <city>/{kind}. Unpack leftImg8bit_trainvaltest.zip and gtFine_trainvaltest.zip "
                "into one folder and give it as `root`."
            )
    # The names end in the kind of image, or in the kind of annotation and the ending.
    by_frame = {path.name.removesuffix(ending).rpartition("_")[0]: path for path in label_paths}
    frames = [path.stem.rpartition("_")[0] for path in image_paths]
    missing = [path for path, frame in zip(image_paths, frames, strict=True) if frame not in by_frame]
    if missing:
        raise FileNotFoundError(
            f"{len(missing)} of {len(image_paths)} images have no *{ending} in {labels}, first: {missing[0]}. Add the "
            "files, or remove the images."
        )
    return [Pair(path, by_frame[frame], frame) for path, frame in zip(image_paths, frames, strict=True)]
