"""COCO-Stuff-10k: from MATLAB files to PNGs of the dataset's class ids, split as in its lists."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from kmaskformer.data.label_spaces import IGNORE_VALUES, label_space
from kmaskformer.data.preparation.conversion import Task, provide
from kmaskformer.whole_files import written_whole

SPLITS = ("train", "test")
_NUM_NAMES_1_0 = 172
_LARGEST_ID = 182


def tasks(source: Path, output: Path) -> list[Task]:
    """One task per image of `source`, a folder with `images`, `annotations` and `imageLists`.

    Raises:
        FileNotFoundError: If a list or a listed file is missing.
    """
    return [task for split in SPLITS for task in _tasks_of_split(source, output, split)]


def read_class_map(path: Path) -> np.ndarray:
    """`(height, width)` uint8 class ids of a MATLAB file, 255 = unlabelled.

    Version 1.0 numbers its 172 classes from 1, the first of which is "unlabeled"; version 1.1 has COCO's ids, 0 =
    "unlabeled". The number of names tells which it is.
    """
    stored, num_names = _read_matlab(path)
    info = label_space("coco_stuff_171")
    void = IGNORE_VALUES[info.name]
    is_first_version = num_names == _NUM_NAMES_1_0
    table = np.full(256, void, np.uint8)
    known = range(2, 2 + info.num_classes) if is_first_version else info.dataset_ids
    table[list(known)] = info.dataset_ids
    lowest, highest = (1, _NUM_NAMES_1_0) if is_first_version else (0, _LARGEST_ID)
    if stored.min() < lowest or stored.max() > highest:
        raise ValueError(
            f"{path}: `S` must hold {lowest}..{highest} where there are {num_names} names. Received: {stored.min()}.."
            f"{stored.max()}. This is no file of COCO-Stuff-10k 1.0 or 1.1."
        )
    return table[stored]


def _read_matlab(path: Path) -> tuple[np.ndarray, int]:
    """The label map and the number of class names; MATLAB's newer files are HDF5 files."""
    import h5py
    import scipy.io

    if h5py.is_hdf5(path):
        with h5py.File(path, "r") as file:
            return np.asarray(file["S"]).T.astype(np.int64), int(file["names"].size)  # MATLAB stores columns first
    content = scipy.io.loadmat(path)
    return content["S"].astype(np.int64), int(content["names"].size)


def _tasks_of_split(source: Path, output: Path, split: str) -> list[Task]:
    listing = source / "imageLists" / f"{split}.txt"
    if not listing.is_file():
        raise FileNotFoundError(
            f"{listing}: no such list. Give the folder with `images`, `annotations` and `imageLists` that "
            "cocostuff-10k-v1.1.zip unpacks to."
        )
    found = []
    for name in listing.read_text(encoding="utf-8").split():
        image, matlab = source / "images" / f"{name}.jpg", source / "annotations" / f"{name}.mat"
        for path in (image, matlab):
            if not path.is_file():
                raise FileNotFoundError(f"{path}: no such file, which {listing} lists. Unpack the dataset again.")
        outputs = (output / "images" / split / f"{name}.jpg", output / "annotations" / split / f"{name}.png")
        found.append(Task(str(image), outputs, partial(_convert, image, matlab, *outputs), (image, matlab)))
    return found


def _convert(image: Path, matlab: Path, image_output: Path, map_output: Path) -> None:
    class_map = read_class_map(matlab)
    provide(image, image_output)
    with written_whole(map_output) as path:
        Image.fromarray(class_map).save(path, format="PNG")
