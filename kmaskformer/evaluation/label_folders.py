"""Which predicted label map belongs to which true one, in two folders."""

from __future__ import annotations

import warnings
from collections import defaultdict
from pathlib import Path
from typing import NamedTuple

SUFFIXES = (".png", ".tif", ".tiff", ".bmp", ".gif")
"""Endings, in any case, of files that can hold label maps: formats without loss."""


class LabelPair(NamedTuple):
    """Files of the predicted and the true label map of one image."""

    predicted: Path
    true: Path


def pair_label_maps(truth: Path, predictions: Path) -> list[LabelPair]:
    """The label maps of a folder, each with its prediction.

    A prediction has the same path within its folder, or the same but for the ending (`a/x.png` and `a/x.tif`).

    Args:
        truth: Folder of label maps; subfolders count.
        predictions: Folder of predicted label maps; those of other images are ignored, with a warning.

    Raises:
        FileNotFoundError: If a folder is missing, the truth holds no label map, or predictions lack one.
        ValueError: If several predictions could belong to one label map, or one to several.
    """
    true_paths, predicted_paths = _label_maps(truth), _label_maps(predictions)
    if not true_paths:
        raise FileNotFoundError(f"{truth}: expected label PNGs. Received: a folder without any")
    by_stem = defaultdict(list)
    for path in predicted_paths:
        by_stem[path.with_suffix("")].append(path)
    found = {path: _choose(path, by_stem[path.with_suffix("")], truth, predictions) for path in true_paths}
    missing = [path for path, choice in found.items() if choice is None]
    if missing:
        raise FileNotFoundError(
            f"{predictions}: every label map of {truth} needs a prediction of the same name. "
            f"Missing: {len(missing)} of {len(found)}, first {missing[0]}"
        )
    _check_not_shared(found, truth, predictions)
    unused = len(set(predicted_paths) - set(found.values()))
    if unused:
        warnings.warn(f"{predictions}: {unused} label maps of other images than the truth's are ignored", stacklevel=2)
    return [LabelPair(predictions / choice, truth / path) for path, choice in found.items()]


def pair_cityscapes(truth: Path, predictions: Path) -> list[LabelPair]:
    """The label maps `*_labelIds.png` of a folder, each with its prediction; none where there are no such files.

    As in Cityscapes' own scripts, a prediction has the label map's city, sequence and frame for the beginning of its
    name (`ulm_000001_000019_leftImg8bit.png`), in any subfolder.

    Raises:
        FileNotFoundError: If a label map has no prediction.
        ValueError: If one has several.
    """
    by_frame = defaultdict(list)
    true_paths = [path for path in _label_maps(truth) if path.name.endswith("_labelIds.png")]
    for path in _label_maps(predictions) if true_paths else ():
        by_frame[_frame(path)].append(path)
    for path in true_paths:
        if len(by_frame[_frame(path)]) != 1:
            names = ", ".join(map(str, by_frame[_frame(path)])) or "none"
            kind = ValueError if by_frame[_frame(path)] else FileNotFoundError
            raise kind(f"{truth / path}: needs one prediction {_frame(path)}*.png in {predictions}. Received: {names}")
    return [LabelPair(predictions / by_frame[_frame(path)][0], truth / path) for path in true_paths]


def _frame(path: Path) -> str:
    return "_".join(path.stem.split("_")[:3])


def _choose(path: Path, candidates: list[Path], truth: Path, predictions: Path) -> Path | None:
    if path in candidates:
        return path
    if len(candidates) > 1:
        names = ", ".join(map(str, candidates))
        raise ValueError(
            f"{truth / path}: needs one prediction in {predictions}. Received: {names}; remove all but one"
        )
    return candidates[0] if candidates else None


def _check_not_shared(found: dict[Path, Path], truth: Path, predictions: Path) -> None:
    users = defaultdict(list)
    for path, choice in found.items():
        users[choice].append(path)
    for choice, paths in users.items():
        if len(paths) > 1:
            names = ", ".join(map(str, paths))
            raise ValueError(
                f"{predictions / choice}: must be the prediction of one label map. Received: {names} in {truth}; "
                "remove all but one, or give each a prediction of the same ending"
            )


def _label_maps(folder: Path) -> list[Path]:
    """Paths relative to the folder, in order."""
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: no such folder of label PNGs")
    # Hidden files are no label maps: macOS puts one, `._0.png`, beside each file that it copies to other disks.
    paths = (p for p in folder.rglob("[!.]*") if p.suffix.lower() in SUFFIXES and p.is_file())
    return sorted(path.relative_to(folder) for path in paths)
