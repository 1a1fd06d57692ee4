"""From a map of class ids to segments: one segment for each class in an image."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from kmaskformer.structures import VOID, DatasetInfo


def void_values(info: DatasetInfo) -> set[int]:
    """Values that mean "unlabelled": the dataset's own, 255 and 65535, as far as no class has them for its id."""
    return {info.ignore_value, 255, 65535} - set(info.dataset_ids)


def segments_of_classes(label_map: np.ndarray, info: DatasetInfo, where: str | Path) -> tuple[np.ndarray, np.ndarray]:
    """Cuts a map of class ids into segments, in the order of the contiguous ids.

    Args:
        label_map: `(height, width)` integers, `info.dataset_ids` or one of `void_values(info)`.
        info: The label space.
        where: What the map was read from, for messages.

    Returns:
        `(height, width)` int32 segment map and `(segments,)` int32 contiguous class ids.

    Raises:
        ValueError: If a value is no class and not void.
    """
    low, high = int(label_map.min(initial=0)), int(label_map.max(initial=0))
    if low < 0 or high > 65535:
        raise ValueError(f"{where}: class ids must lie in 0..65535. Received: {low}..{high}.")
    contiguous = info.contiguous_ids
    run_values, lengths = runs(label_map)
    values = np.flatnonzero(np.bincount(run_values)).tolist()
    unknown = [value for value in values if value not in contiguous and value not in void_values(info)]
    if unknown:
        raise ValueError(_unknown_message(unknown, label_map, info, where))
    labels = sorted(contiguous[value] for value in values if value in contiguous)
    table = np.full(high + 1, VOID, np.int32)
    table[[info.dataset_ids[label] for label in labels]] = np.arange(len(labels))
    return np.repeat(table[run_values], lengths).reshape(label_map.shape), np.asarray(labels, np.int32)


def runs(id_map: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Values and lengths of the stretches of equal pixels, row after row.

    Looking up the value of each stretch and repeating it takes a third of the time of looking up each pixel's.
    """
    flat = id_map.ravel()
    starts = np.concatenate([[0], np.flatnonzero(flat[1:] != flat[:-1]) + 1]) if flat.size else np.zeros(0, int)
    return flat[starts], np.diff(starts, append=flat.size)


def _unknown_message(unknown: list[int], label_map: np.ndarray, info: DatasetInfo, where: str | Path) -> str:
    ids, pixels = info.dataset_ids, int(np.isin(label_map, unknown).sum())
    return (
        f"{where}: label maps of '{info.name}' must hold ids of its {info.num_classes} classes "
        f"({min(ids)}..{max(ids)}) or {sorted(void_values(info))} for unlabelled. Received: {unknown[:10]} "
        f"({pixels} pixels). Add the missing classes to the class list, or set its `ignore` value."
    )
