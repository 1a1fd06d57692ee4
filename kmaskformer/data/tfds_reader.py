"""Reader of datasets that TensorFlow Datasets has prepared.

Needs the extra `data` (`pip install -e '.[data]'`). Images and maps are decoded as those of all other readers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from kmaskformer.data import images as image_files
from kmaskformer.data.arguments import refuse_negative
from kmaskformer.data.label_maps import segments_of_classes
from kmaskformer.data.label_spaces import label_space
from kmaskformer.data.synthetic import SHAPES_INFO
from kmaskformer.data.tfds_records import Records
from kmaskformer.extras import missing_extra
from kmaskformer.structures import VOID, DatasetInfo, Sample

Truth = tuple[np.ndarray, np.ndarray, np.ndarray]
"""Segment map, labels and crowds."""

_IMAGES = ("image", "image_left")
_LABEL_MAPS = ("segmentation_mask", "segmentation_label", "label_map", "segmentation", "mask", "annotation")
_NAMES = ("image_id", "image/id", "file_name", "image/filename")
_CITYSCAPES_IDS = range(34)
_KNOWN_INFOS: dict[str, Callable[[], DatasetInfo]] = {
    "scene_parse150": lambda: label_space("ade20k_150"),
    "cityscapes": lambda: label_space("cityscapes_19"),
    "coco": lambda: label_space("coco_panoptic_133"),
    "oxford_iiit_pet": lambda: DatasetInfo(
        "oxford_iiit_pet", ("pet", "background", "border"), (0,), dataset_ids=(1, 2, 3)
    ),
    "kmaskformer_shapes": lambda: SHAPES_INFO,
}
"""Label spaces by the name of the dataset."""


class TfdsReader:
    """A prepared dataset of TensorFlow Datasets: semantic label maps, or COCO's panoptic format.

    Recognised are, by their features: a label map (`segmentation_mask`, `segmentation_label`, `annotation`, ...) of
    class ids; `panoptic_image` with `panoptic_objects`; `segment_map` (1 + row) with `labels`. `scene_parse150` holds,
    in spite of its name, the maps of the instance challenge: its 100 things with their instances; the rest is void.

    Args:
        name: Of the dataset, as for `tfds.builder`: `"oxford_iiit_pet"`, `"coco/2017_panoptic"`.
        split: `"train"`, or a part such as `"train[:80%]"`; or several names, of which the first that exists is taken.
        info: The label space. By default the dataset's own, where its features or this module know it.
        data_dir: Folder of the prepared datasets; by default the library's.
        limit: Only the first `limit` examples; 0 for all.

    Raises:
        ImportError: If the library is not installed.
        FileNotFoundError: If the dataset is not prepared; the message says how to do it. Nothing is downloaded.
        ValueError: If there is no such dataset or split, it has no masks, or its classes are unknown.

    Example:
        >>> reader = TfdsReader("oxford_iiit_pet", "train[:80%]")
    """

    def __init__(
        self,
        name: str,
        split: str | Sequence[str] = "train",
        info: DatasetInfo | None = None,
        data_dir: str | None = None,
        limit: int = 0,
    ) -> None:
        refuse_negative(limit=limit)
        builder = _builder(name, data_dir)
        self._split = _existing_split(builder, split)
        self._records = Records(builder, self._split)
        self._limit = limit or len(self._records)
        self._where = f"tfds:{name}, {self._split}"
        features = builder.info.features
        self._image_key = next((key for key in _IMAGES if key in features), None)
        self._read_truth = _form(builder.name, features)
        if self._read_truth is None or self._image_key is None:
            raise ValueError(
                f"tfds:{name}: must have an image ({', '.join(_IMAGES)}) with a label map ({', '.join(_LABEL_MAPS)}), "
                f"a panoptic image or a segment map. Received: the features {', '.join(sorted(features))}."
            )
        self.info = info or _info(builder.name, features)

    def __len__(self) -> int:
        return min(self._limit, len(self._records))

    def __getitem__(self, index: int) -> Sample:
        example = tf.train.Example.FromString(self._records[range(len(self))[index]]).features.feature
        where = f"{self._where}, example {index}"
        try:
            image = image_files.read_image(_bytes(example, self._image_key))
            segment_map, labels, is_crowd = self._read_truth(example, self.info)
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from error
        if image.shape[:2] != segment_map.shape or labels.max(initial=0) >= self.info.num_classes:
            raise ValueError(
                f"{where}: image and map must have the same size, and labels lie in 0..{self.info.num_classes - 1}. "
                f"Received: {image.shape[:2]} and {segment_map.shape}, labels up to {labels.max(initial=0)}."
            )
        return Sample(
            image=image, segment_map=segment_map, labels=labels, is_crowd=is_crowd, image_id=_name(example, index)
        )


def _builder(name: str, data_dir: str | None) -> Any:
    try:
        import tensorflow_datasets as tfds
    except ImportError as error:
        raise missing_extra("data", f"data.source tfds:{name}", error) from error
    try:
        builder = tfds.builder(name, data_dir=data_dir)
    except tfds.core.DatasetNotFoundError as error:
        raise ValueError(
            f"tfds:{name}: TensorFlow Datasets has no such dataset ({str(error).splitlines()[0]})"
        ) from error
    if not builder.info.splits:
        place = f", data_dir={str(data_dir)!r}" if data_dir else ""
        raise FileNotFoundError(
            f"{builder.data_dir}: the dataset is not prepared. Set data.root to where it is, or download it: "
            f'python -c "import tensorflow_datasets as tfds; tfds.builder({name!r}{place}).download_and_prepare()"'
        )
    return builder


def _existing_split(builder: Any, split: str | Sequence[str]) -> str:
    names = [split] if isinstance(split, str) else list(split)
    for name in names:
        if name.partition("[")[0] in builder.info.splits:
            return name
    raise ValueError(
        f"tfds:{builder.info.full_name}: no split {' or '.join(map(repr, names))}. "
        f"It has {', '.join(builder.info.splits)}."
    )


def _form(name: str, features: Any) -> Callable[[Any, DatasetInfo], Truth] | None:
    """The function that reads the truth of an example, or None."""
    if "panoptic_image" in features and "panoptic_objects" in features:
        return _panoptic
    if "segment_map" in features and "labels" in features:
        return _rows
    if name == "scene_parse150":
        return _scene_parse_instances
    key = next((key for key in _LABEL_MAPS if key in features), None)
    if key is None:
        return None
    known_ids = _CITYSCAPES_IDS if name == "cityscapes" else ()
    return lambda example, info: _semantic(example, info, key, known_ids)


def _semantic(example: Any, info: DatasetInfo, key: str, known_ids: Sequence[int]) -> Truth:
    """One segment for each class; of `known_ids` those that are not in the label space are void."""
    label_map = image_files.read_label_map(_bytes(example, key))
    label_map[np.isin(label_map, sorted(set(known_ids) - set(info.dataset_ids)))] = info.ignore_value
    segment_map, labels = segments_of_classes(label_map, info, key)
    return segment_map, labels, np.zeros(len(labels), bool)


def _panoptic(example: Any, info: DatasetInfo) -> Truth:
    del info
    id_map = image_files.read_panoptic_ids(_bytes(example, "panoptic_image"))
    ids, labels, crowd = (
        np.asarray(example[f"panoptic_objects/{key}"].int64_list.value, np.int64) for key in ("id", "label", "is_crowd")
    )
    values, places = np.unique(id_map, return_inverse=True)
    strangers = sorted(set(values.tolist()) - {0, *ids.tolist()})
    if strangers:
        raise ValueError(f"every id in the panoptic image must be an object's. Received: {strangers[:10]}")
    row_of = {0: VOID} | {segment_id: row for row, segment_id in enumerate(ids.tolist())}
    rows = np.asarray([row_of[value] for value in values.tolist()], np.int32)
    return rows[places.reshape(id_map.shape)], labels.astype(np.int32), crowd.astype(bool)


def _rows(example: Any, info: DatasetInfo) -> Truth:
    del info
    labels = np.asarray(example["labels"].int64_list.value, np.int32)
    segment_map = image_files.read_label_map(_bytes(example, "segment_map")) + VOID
    if segment_map.max() >= len(labels):
        raise ValueError(
            f"`segment_map` must be 1 + the row of {len(labels)} labels. Received: {segment_map.max() + 1}"
        )
    return segment_map, labels, np.zeros(len(labels), bool)


def _scene_parse_instances(example: Any, info: DatasetInfo) -> Truth:
    """Red is the number of a thing class among the things, from 1; green that of the instance."""
    numbers = image_files.read_panoptic_ids(_bytes(example, "annotation")) & 0xFFFF
    values, places = np.unique(numbers, return_inverse=True)
    things = values & 255
    if things.max() > len(info.thing_ids):
        raise ValueError(f"red must be the number of a thing class, 0..{len(info.thing_ids)}. Received: {things.max()}")
    kept = things > 0
    labels = np.asarray(info.thing_ids, np.int32)[things[kept] - 1]
    rows = np.where(kept, np.cumsum(kept) - 1, VOID).astype(np.int32)
    return rows[places.reshape(numbers.shape)], labels, np.zeros(len(labels), bool)


def _info(name: str, features: Any) -> DatasetInfo:
    if name in _KNOWN_INFOS:
        return _KNOWN_INFOS[name]()
    names = next(
        (features[key].names for key in _LABEL_MAPS if key in features and hasattr(features[key], "names")), None
    )
    if names:
        return DatasetInfo(name, tuple(names))
    raise ValueError(
        f"tfds:{name}: the classes are not known. Give them in data.class_names or data.classes, with the ids of the "
        "label maps where these do not start at 0."
    )


def _bytes(example: Any, key: str) -> bytes:
    values = example[key].bytes_list.value
    if len(values) != 1:
        raise ValueError(f"`{key}` must hold one encoded image. Received: {len(values)}")
    return values[0]


def _name(example: Any, index: int) -> str:
    for key in _NAMES:
        if key in example:
            values = example[key].bytes_list.value or example[key].int64_list.value
            return values[0].decode() if isinstance(values[0], bytes) else str(values[0])
    return str(index)
