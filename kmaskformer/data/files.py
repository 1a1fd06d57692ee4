"""Which image belongs to which label map, in folders."""

from __future__ import annotations

import bisect
import collections
import glob
import itertools
import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from kmaskformer.data.arguments import refuse_negative

IMAGE_SUFFIXES = frozenset((".jpg", ".jpeg", ".png", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".ppm", ".pgm", ".jp2"))
"""What counts as an image where a folder is given instead of a pattern, in small letters."""


class Pair(NamedTuple):
    """An image, its label map and the name by which results refer to it."""

    image: Path
    labels: Path
    image_id: str


def list_pairs(
    images: str | Path | Sequence[str | Path],
    labels: str | Path | Sequence[str | Path],
    root: str | Path = ".",
    limit: int = 0,
    require_labels: bool = True,
) -> list[Pair]:
    """Finds the images and the label map of each.

    Args:
        images: Glob pattern relative to `root` (`"images/*.jpg"`, `"**/*.png"`), a folder, whose image files at any
            depth are taken, or a list of paths.
        labels: Pattern relative to `root` in which `{stem}` is the image's file name without suffix and `{folder}` the
            name of the folder it lies in (`"labels/{stem}.png"`); or a folder with the images' inner folders and file
            names, of any suffix, one for each image, to all of which the same text may be added (`a.jpg`,
            `a_mask.png`); or a list of paths, as long as the images'.
        root: Folder to which patterns and relative paths refer.
        limit: Only the first `limit` images, in the order of their names; 0 for all.
        require_labels: Whether an image without a label map is an error now, and not only when it is read.

    Returns:
        One `Pair` per image, in the order of the list or of the file names.

    Raises:
        FileNotFoundError: If a folder is missing, the pattern matches no file, or an image has no label map.
        ValueError: If `limit` is negative, the two lists differ in length, the labels' pattern has no `{stem}`, or a
            folder has several label maps for an image.
    """
    refuse_negative(limit=limit)
    root = Path(root)
    images, labels = (str(value) if isinstance(value, Path) else value for value in (images, labels))
    if not root.is_dir():
        raise FileNotFoundError(f"`root` must be an existing folder. Received: {root} (from {Path.cwd()}).")
    image_paths = _list_images(images, root)
    if isinstance(images, str) and isinstance(labels, str) and (root / labels).is_dir():
        label_paths = _labels_in_folder(root / labels, image_paths, _fixed_part(images, root))
    else:
        label_paths = _list_labels(labels, image_paths, root)
    names = [path.stem for path in image_paths]
    if len(set(names)) < len(names):
        names = [os.path.relpath(path, root) for path in image_paths]
    pairs = [Pair(*fields) for fields in zip(image_paths, label_paths, names, strict=True)]
    pairs = pairs[:limit] if limit else pairs
    if require_labels:
        _require_labels(pairs)
    return pairs


def _list_images(images: str | Sequence[str], root: Path) -> list[Path]:
    if not isinstance(images, str):
        paths = _listed(images, root)
    elif (root / images).is_dir():
        paths = images_in(root / images)
    else:
        found = sorted(glob.glob(images, root_dir=root, recursive=True))
        paths = [root / path for path in found if (root / path).is_file()]
    if not paths:
        raise FileNotFoundError(
            f"The dataset is empty: no file matches {images!r} in {root.resolve()}. Check `root` and the pattern."
        )
    return paths


def _listed(paths: Sequence[str | Path], root: Path) -> list[Path]:
    """The files of a list, whose lines may come from a text file with the line ends of Windows."""
    return [root / os.fspath(path).rstrip("\r\n") for path in paths]


def images_in(folder: Path) -> list[Path]:
    """The image files in a folder and its inner folders, hidden ones aside, in the order of their names.

    Links to folders are not followed, as they may lead back.
    """
    found = []
    for parent, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        found += [Path(parent, name) for name in names if not name.startswith(".")]
    return sorted(path for path in found if path.suffix.lower() in IMAGE_SUFFIXES)


def _fixed_part(pattern: str, root: Path) -> Path:
    """The folder in which a pattern, or a folder, looks: its parts before the first with a wildcard."""
    if (root / pattern).is_dir():
        return root / pattern
    fixed = list(itertools.takewhile(lambda part: not glob.has_magic(part), Path(pattern).parent.parts))
    return root.joinpath(*fixed)


def _labels_in_folder(folder: Path, images: list[Path], images_folder: Path) -> list[Path]:
    """The label map of each image: at the same place in `folder`, by the same name with the same addition."""
    found: dict[str, list[Path]] = {}
    for path in images_in(folder):
        found.setdefault(os.path.splitext(os.path.relpath(path, folder))[0], []).append(path)
    stems = [os.path.splitext(os.path.relpath(path, images_folder))[0] for path in images]
    addition = "" if any(stem in found for stem in stems) else _common_addition(stems, sorted(found))
    known = {os.path.realpath(path) for path in images}
    expected = [folder / f"{stem}{addition}.png" for stem in stems]
    candidates = [found.get(stem + addition, [path]) for stem, path in zip(stems, expected, strict=True)]
    return [_one_map(paths, image, known) for paths, image in zip(candidates, images, strict=True)]


def _one_map(candidates: list[Path], image: Path, images: set[str]) -> Path:
    """The label map among files of one name; images may lie in the same folder."""
    if len(candidates) == 1:
        return candidates[0]
    maps = [path for path in candidates if os.path.realpath(path) not in images] or candidates[-1:]
    if len(maps) > 1:
        raise ValueError(
            f"{image}: an image must have one label map. Received: {', '.join(map(str, maps))}. "
            f'Take away the wrong one, or give `labels` as a pattern, such as "{maps[0].parent}/{{stem}}'
            f'{maps[0].suffix}".'
        )
    return maps[0]


def _common_addition(stems: list[str], names: list[str]) -> str:
    """The text that most names have more than the stem they begin with; the shortest of several. `names` are sorted."""
    counts: collections.Counter[str] = collections.Counter()
    for stem in stems:
        first = bisect.bisect(names, stem)
        longer = itertools.takewhile(lambda name, stem=stem: name.startswith(stem), names[first:])
        # `1_mask` belongs to `1`, but `10` does not.
        counts.update(name[len(stem) :] for name in longer if not name[len(stem)].isalnum())
    return min(counts, key=lambda addition: (-counts[addition], len(addition), addition), default="")


def _list_labels(labels: str | Sequence[str], images: list[Path], root: Path) -> list[Path]:
    if not isinstance(labels, str):
        if len(labels) != len(images):
            raise ValueError(f"`labels` must list one file per image ({len(images)}). Received: {len(labels)} files.")
        return _listed(labels, root)
    if not Path(labels).suffix and not glob.has_magic(labels) and "{" not in labels and not (root / labels).exists():
        raise FileNotFoundError(
            f"{(root / labels).absolute()}: no such folder of label maps. Check `root` and `labels`."
        )
    if "{stem}" not in labels:
        raise ValueError(
            f"`labels` must contain {{stem}}, which stands for the image's name. Received: labels={labels!r}. "
            'Write for example "labels/{stem}.png", or give an existing folder; with a list of images, a list of files.'
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
