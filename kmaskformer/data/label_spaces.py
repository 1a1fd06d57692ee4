"""Label spaces of the published datasets: names, ids, colours, things.

The tables are the CSV files in `labels/`: facts as published with the datasets (colours of classes that have none there
are made up). Rows are in the order of the contiguous ids; the column `id` holds the dataset's own.
"""

from __future__ import annotations

import difflib
from importlib import resources

from kmaskformer.data.info import read_info
from kmaskformer.structures import DatasetInfo

IGNORE_VALUES = {
    "ade20k_150": 0,  # label maps hold 1..150
    "ade20k_full_847": 65535,  # contiguous ids in 16 bits
    "coco_panoptic_133": 255,
    "coco_instance_80": 255,
    "coco_stuff_171": 255,
    "cityscapes_19": 255,
    "mapillary_vistas_65": 65,  # "Unlabeled"
}
"""Value of unlabelled pixels in the dataset's label maps, by the name of the label space."""


def label_space(name: str) -> DatasetInfo:
    """The record of a published dataset.

    Args:
        name: One of `IGNORE_VALUES`, such as `"ade20k_150"`.

    Raises:
        ValueError: If there is no such table.

    Example:
        >>> label_space("coco_panoptic_133").class_names[0]
        'person'
    """
    if name not in IGNORE_VALUES:
        close = difflib.get_close_matches(name, IGNORE_VALUES, n=1)
        hint = f" Did you mean {close[0]}?" if close else ""
        raise ValueError(f"`name` must be one of {', '.join(IGNORE_VALUES)}. Received: name={name!r}.{hint}")
    table = resources.files("kmaskformer.data").joinpath("labels", f"{name}.csv")
    with resources.as_file(table) as path:
        return read_info(path, name=name, ignore_value=IGNORE_VALUES[name])
