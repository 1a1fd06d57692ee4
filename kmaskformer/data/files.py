"""Which image belongs to which label map, in folders."""

from __future__ import annotations

import glob
import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple


class Pair(NamedTuple):
    """An image, its label map and the name by which results refer to it."""

    image: Path
    labels: Path
    image_id: str


def list_pairs(
    images: str | Sequence[str], labels: str | Sequence[str], root: str | Path = ".", limit: int = 0
) -> list[Pair]:
    """Finds the images and the label map of each.

    Args:
        images: Glob pattern relative to `root` (`"images/*.jpg"`, `"**/*.png"`), or a list of paths.
        labels: Pattern relative to `root` in which `{stem}` is the image's file name without suffix and `{folder}` the
            name of the folder it lies in (`"labels/{stem}.png"`), or a list of paths, as long as the images'.
        root: Folder to which patterns and relative paths refer.
        limit: Only the first `limit` images, in the order of their names; 0 for all.

    Returns:
        One `Pair` per image, in the order of the list or of the file names.

    Raises:
        FileNotFoundError: If `root` is missing, the pattern matches no file, or an image has no label map.
        ValueError: If the two lists differ in length or the labels' pattern has no `{stem}`.
    """
    root = Path(root)
    if not root.is_dir():
        raise FileNotFoundError(f"`root` must be an existing folder. Received: {root} (from {Path.cwd()}).")
    image_paths = _list_images(images, root)
    label_paths = _list_labels(labels, image_paths, root)
    names = [path.stem for path in image_paths]
    if len(set(names)) < len(names):
        names = [os.path.relpath(path, root) for path in image_paths]
    pairs = [Pair(*fields) for fields in zip(image_paths, label_paths, names, strict=True)]
    pairs = pairs[:limit] if limit else pairs
    _require_labels(pairs)
    return pairs


def _list_images(images: str | Sequence[str], root: Path) -> list[Path]:
    if not isinstance(images, str):
        paths = [root / path for path in images]
    else:
        found = sorted(glob.glob(images, root_dir=root, recursive=True))
        paths = [root / path for path in found if (root / path).is_file()]
    if not paths:
        raise FileNotFoundError(
            f"The dataset is empty: no file matches {images!r} in {root.resolve()}. Check `root` and the pattern."
        )
    return paths


def _list_labels(labels: str | Sequence[str], images: list[Path], root: Path) -> list[Path]:
    if not isinstance(labels, str):
        if len(labels) != len(images):
            raise ValueError(f"`labels` must list one file per image ({len(images)}). Received: {len(labels)} files.")
        return [root / path for path in labels]
    if "{stem}" not in labels:
        raise ValueError(
            f"`labels` must contain {{stem}}, which stands for the image's name. Received: labels={labels!r}. "
            'Write for example "labels/{stem}.png".'
        )
    return [root / labels.replace("{stem}", path.stem).replace("{folder}", path.parent.name) for path in images]


def _require_labels(pairs: list[Pair]) -> None:
    missing = [pair for pair in pairs if not pair.labels.is_file()]
    if missing:
        first = missing[0]
        raise FileNotFoundError(
            f"{len(missing)} of {len(pairs)} images have no label map, first: {first.image} expects {first.labels}. "
            "Add the file, correct the `labels` pattern, or narrow the `images` pattern."
        )
