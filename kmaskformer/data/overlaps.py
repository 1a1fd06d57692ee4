"""Segments that overlap, as a map and two tables.

A map can say of each pixel only one thing. Where segments overlap, that is the region the pixel lies in: all pixels of
a region are in the same segments, which `membership` lists. Whatever moves the pixels of a segment map moves those of a
map of regions, and dense masks, which take far more memory, are made where they are needed.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from kmaskformer.structures import VOID, Sample


def regions_of_masks(masks: Iterable[np.ndarray], height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Cuts masks that may overlap into regions.

    Args:
        masks: Each `(height, width)` bool; looked at one by one.
        height: Height of the image.
        width: Width of the image.

    Returns:
        `(height, width)` int32 map of regions, -1 where no mask is, and `(masks, regions)` bool, which mask a region
        belongs to. No region is empty; a mask without pixels has none.
    """
    regions = np.zeros((height, width), np.int32)
    areas, members = [height * width], [[]]
    count = 0
    for count, mask in enumerate(masks, 1):
        rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
        if rows.size:
            window = (slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1))
            _divide(regions[window], mask[window], count - 1, areas, members)
    membership = np.zeros((count, len(members) - 1), bool)
    for region, owners in enumerate(members[1:]):
        membership[owners, region] = True
    return regions + VOID, membership


def _divide(regions: np.ndarray, mask: np.ndarray, number: int, areas: list[int], members: list[list[int]]) -> None:
    """Adds a mask to the regions it covers wholly and splits the others; region 0 is what no mask covers."""
    inside = regions[mask]
    covered = np.bincount(inside, minlength=len(areas))
    renamed = np.arange(len(areas), dtype=np.int32)
    for region in np.flatnonzero(covered).tolist():
        if region and covered[region] == areas[region]:
            members[region].append(number)
            continue
        renamed[region] = len(areas)
        members.append([*members[region], number])
        areas.append(int(covered[region]))
        areas[region] -= int(covered[region])
    regions[mask] = renamed[inside]


def settle_overlaps(sample: Sample) -> Sample:
    """The sample without overlaps: pixels of several segments are given to the smallest of these.

    Args:
        sample: A sample as a reader delivers it, in NumPy.

    Returns:
        The sample, unchanged where it has no `membership`; else with a map of segments and without `membership`.
    """
    if "membership" not in sample:
        return sample
    membership, regions = sample["membership"], sample["segment_map"]
    region_areas = np.bincount(regions.ravel() - VOID, minlength=membership.shape[1] + 1)[1:]
    areas = membership @ region_areas
    owners = np.full(membership.shape[1] + 1, VOID, np.int32)
    if membership.size:
        smallest = np.where(membership, areas[:, None], np.iinfo(np.int64).max).argmin(axis=0)
        owners[:-1] = np.where(membership.any(axis=0), smallest, VOID)
    settled = {key: value for key, value in sample.items() if key != "membership"}
    return {**settled, "segment_map": owners[regions]}
