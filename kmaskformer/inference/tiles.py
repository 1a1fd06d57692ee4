"""Large pictures in overlapping tiles: where the tiles lie, and how their results become one; NumPy, outside the graph.

Every pixel gets its label from the tile in which it lies deepest, so that what a tile's edge cut off is not used; or,
where that tile found nothing, from another. Instances of neighbouring tiles are one where they agree in the region that
both tiles see.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from kmaskformer.structures import VOID

_SAME_INSTANCE = 0.5


@dataclasses.dataclass(frozen=True)
class Tile:
    """A part of a picture.

    `region` is what the model sees and `core` the part of it whose result counts, both as `(rows, columns)` of the
    picture. Cores cover the picture once.
    """

    region: tuple[slice, slice]
    core: tuple[slice, slice]

    def window(self, part: tuple[slice, slice]) -> tuple[slice, slice]:
        """A part of the region, such as the core, as rows and columns of the tile."""
        pairs = zip(part, self.region, strict=True)
        return tuple(slice(side.start - region.start, side.stop - region.start) for side, region in pairs)


@dataclasses.dataclass(frozen=True)
class Tiling:
    """How pictures are cut into square tiles of one size, evenly spread; smaller pictures are one tile.

    Args:
        size: Side of a tile, in pixels of the picture that the model sees: as large as the training crops.
        overlap: Least part of a tile's side that its neighbour sees too, 0..1 without 1. Instances of up to half this
            size are seen whole by the tile that counts.

    Raises:
        ValueError: If the size is not positive or the overlap out of range.
    """

    size: int
    overlap: float = 0.5

    def __post_init__(self) -> None:
        if self.size < 1 or not 0 <= self.overlap < 1:
            raise ValueError(
                "Tiles need a `size` of at least 1 pixel and an `overlap` of 0 or more and less than 1. "
                f"Received: size={self.size}, overlap={self.overlap}"
            )

    def tiles(self, height: int, width: int) -> list[Tile]:
        """The tiles of a picture, row by row."""
        rows, columns = self._spans(height), self._spans(width)
        return [Tile((row[0], column[0]), (row[1], column[1])) for row, column in itertools.product(rows, columns)]

    def _spans(self, length: int) -> list[tuple[slice, slice]]:
        """Regions and cores along one side."""
        size = min(self.size, length)
        step = max(int(round(size * (1 - self.overlap), 6)), 1)  # 10 * (1 - 0.8) is a little less than 2
        count = -(-(length - size) // step) + 1
        starts = np.linspace(0, length - size, count).round().astype(int).tolist()
        cuts = [0, *((left + size + right) // 2 for left, right in itertools.pairwise(starts)), length]
        cores = itertools.pairwise(cuts)
        return [(slice(start, start + size), slice(*core)) for start, core in zip(starts, cores, strict=True)]


def stitch(
    results: Sequence[Mapping[str, np.ndarray]],
    tiles: Sequence[Tile],
    output_size: tuple[int, int],
    thing_ids: Sequence[int],
) -> dict[str, np.ndarray]:
    """One semantic or panoptic result from those of the tiles.

    Args:
        results: Of each tile what inference gives at the tile's own size, without a batch axis: `class_map` and perhaps
            `confidence`, or `panoptic_map` and its table.
        tiles: The tiles, in the same order.
        output_size: `(height, width)` wanted; the maps are brought to it without mixing labels.
        thing_ids: Contiguous ids of the thing classes.

    Raises:
        ValueError: If the results are instances, which may overlap, so that no map of the picture holds them.
    """
    if "panoptic_map" in results[0]:
        return stitch_panoptic(results, tiles, output_size, thing_ids)
    if "class_map" not in results[0]:
        raise ValueError(
            "Tiles can be put together for semantic and panoptic results only. "
            f"Received: results with {', '.join(results[0])}. Leave out the tiles, or ask for panoptic results."
        )
    return {key: _nearest(stitch_maps([result[key] for result in results], tiles), output_size) for key in results[0]}


def stitch_maps(maps: Sequence[np.ndarray], tiles: Sequence[Tile]) -> np.ndarray:
    """One map of the whole picture from the cores of its tiles' maps, each `(rows, columns)`."""
    whole = np.empty([side.stop for side in tiles[-1].region], maps[0].dtype)
    for part, tile in zip(maps, tiles, strict=True):
        whole[tile.core] = part[tile.window(tile.core)]
    return whole


def stitch_panoptic(
    results: Sequence[Mapping[str, np.ndarray]],
    tiles: Sequence[Tile],
    output_size: tuple[int, int],
    thing_ids: Sequence[int],
) -> dict[str, np.ndarray]:
    """One panoptic result from those of the tiles.

    Two instances of different tiles are one if they have the same class and their intersection over union, within the
    region that both tiles see, exceeds one half; all segments of a stuff class are one. A segment of which less than
    half is left, of its largest part in any tile, is dropped, for it is the rest of an instance that the tiles which
    count have seen otherwise. Void pixels are what no tile has found anything in that is kept.

    Args:
        results: Of each tile what `panoptic_inference` gives, without a batch axis: `panoptic_map` `(rows, columns)`
            and the columns `valid`, `segment_ids`, `category_ids` and, if they have them, `scores`.
        tiles: The tiles, in the same order.
        output_size: `(height, width)` wanted.
        thing_ids: Contiguous ids of the thing classes.

    Returns:
        `panoptic_map` `(height, width)` int32, 0 = void, and per segment, ids from 1: `segment_ids`, `category_ids`,
        `is_thing`, `areas`, `valid` (not where nothing of it is left at a smaller size) and, if given, `scores` (the
        highest of its parts).
    """
    pieces = _Pieces.of(results)
    groups = _groups(pieces, _same_instances(pieces, tiles), thing_ids)
    whole = _filled(stitch_maps(pieces.maps, tiles), pieces.maps, tiles)
    kept = _kept(groups, pieces.areas, groups[whole])
    whole = _filled(np.where(kept[whole], whole, 0), [np.where(kept[part], part, 0) for part in pieces.maps], tiles)
    # Pieces that are not kept, void among them, get id 0, the others the number of their group without gaps.
    ids = np.where(kept, np.searchsorted(np.unique(groups[kept]), groups) + 1, 0).astype(np.int32)
    return _table(_nearest(ids[whole], output_size), ids, pieces, thing_ids)


def _kept(groups: np.ndarray, areas: np.ndarray, painted: np.ndarray) -> np.ndarray:
    """Of each piece, whether its group has at least half the pixels of its largest piece; void is not kept."""
    largest = np.zeros(groups.max() + 1, np.int64)
    np.maximum.at(largest, groups, areas)
    kept = 2 * np.bincount(painted.ravel(), minlength=len(largest)) >= largest
    return kept[groups] & (groups != groups[0])


@dataclasses.dataclass
class _Pieces:
    """The segments of all tiles in one numbering, from 1; entry 0 of each column is void."""

    maps: list[np.ndarray]
    category_ids: np.ndarray
    scores: np.ndarray | None
    areas: np.ndarray

    @classmethod
    def of(cls, results: Sequence[Mapping[str, np.ndarray]]) -> _Pieces:
        maps, offset = [], 1
        columns: dict[str, list[np.ndarray]] = {"category_ids": [np.array([VOID])], "scores": [np.zeros(1)]}
        for result in results:
            rows = np.flatnonzero(result["valid"])
            segment_ids = np.asarray(result["segment_ids"])[rows]
            numbers = np.zeros(max(segment_ids.max(initial=0), result["panoptic_map"].max(initial=0)) + 1, np.int64)
            numbers[segment_ids] = offset + np.arange(len(rows))
            maps.append(numbers[result["panoptic_map"]])
            offset += len(rows)
            for key, column in columns.items():
                column.append(np.asarray(result[key])[rows] if key in result else np.zeros(len(rows)))
        areas = sum(np.bincount(part.ravel(), minlength=offset) for part in maps)
        scores = np.concatenate(columns["scores"]) if "scores" in results[0] else None
        return cls(maps, np.concatenate(columns["category_ids"]).astype(np.int64), scores, areas)


def _filled(whole: np.ndarray, maps: Sequence[np.ndarray], tiles: Sequence[Tile]) -> np.ndarray:
    """The map with void pixels taken from other tiles that found something there."""
    for part, tile in zip(maps, tiles, strict=True):
        seen = whole[tile.region]
        whole[tile.region] = np.where(seen == 0, part, seen)
    return whole


def _same_instances(pieces: _Pieces, tiles: Sequence[Tile]) -> Iterator[np.ndarray]:
    """`(pairs, 2)` pieces of one class that agree where two tiles overlap, for each two tiles."""
    for (first, one), (second, other) in _neighbours(tiles):
        shared = _shared(one.region, other.region)
        if shared is None:
            continue
        views = (pieces.maps[first][one.window(shared)], pieces.maps[second][other.window(shared)])
        yield _agreeing(*views, pieces.category_ids)


def _neighbours(tiles: Sequence[Tile]) -> Iterator[tuple[tuple[int, Tile], tuple[int, Tile]]]:
    """Pairs of tiles that share rows; of many tiles, most pairs do not."""
    numbered = list(enumerate(tiles))
    for first, one in numbered:
        for second, other in numbered[first + 1 :]:
            if other.region[0].start >= one.region[0].stop:
                break
            yield (first, one), (second, other)


def _agreeing(one: np.ndarray, other: np.ndarray, category_ids: np.ndarray) -> np.ndarray:
    """`(pairs, 2)` pieces of two maps of one region whose intersection over union exceeds one half."""
    numbers, counts = np.unique(one.astype(np.int64) * len(category_ids) + other, return_counts=True)
    pairs = np.stack([numbers // len(category_ids), numbers % len(category_ids)], axis=-1)
    areas = [np.bincount(view.ravel(), minlength=len(category_ids)) for view in (one, other)]
    unions = areas[0][pairs[:, 0]] + areas[1][pairs[:, 1]] - counts
    same_class = category_ids[pairs[:, 0]] == category_ids[pairs[:, 1]]
    return pairs[(counts > _SAME_INSTANCE * unions) & same_class & (pairs > 0).all(axis=-1)]


def _shared(one: tuple[slice, slice], other: tuple[slice, slice]) -> tuple[slice, slice] | None:
    both = tuple(slice(max(a.start, b.start), min(a.stop, b.stop)) for a, b in zip(one, other, strict=True))
    return both if all(side.start < side.stop for side in both) else None


def _groups(pieces: _Pieces, links: Iterator[np.ndarray], thing_ids: Sequence[int]) -> np.ndarray:
    """Number of each piece's segment in the whole picture, from 1; 0 for void."""
    from scipy import sparse  # a fifth of a second that servers need not wait
    from scipy.sparse.csgraph import connected_components

    count = len(pieces.category_ids)
    things = np.isin(pieces.category_ids, np.asarray(thing_ids, np.int64))
    linked = np.concatenate([np.zeros((0, 2), np.int64), *links])
    linked = linked[things[linked].all(axis=-1)]
    stuff = np.flatnonzero(~things)[1:]
    first = dict(zip(pieces.category_ids[stuff], stuff, strict=True))
    same_stuff = np.array([(piece, first[pieces.category_ids[piece]]) for piece in stuff], np.int64).reshape(-1, 2)
    ends = np.concatenate([linked, same_stuff]).T
    graph = sparse.coo_array((np.ones(ends.shape[1], bool), (ends[0], ends[1])), (count, count))
    # Components are numbered in the order of their first piece, and the first piece is void.
    return connected_components(graph, directed=False)[1]


def _table(
    panoptic_map: np.ndarray, ids: np.ndarray, pieces: _Pieces, thing_ids: Sequence[int]
) -> dict[str, np.ndarray]:
    """The result's columns from the id of each piece in the whole picture, 0 where it was dropped."""
    count = int(ids.max(initial=0))
    category_ids = np.zeros(count + 1, np.int32)
    category_ids[ids] = pieces.category_ids
    areas = np.bincount(panoptic_map.ravel(), minlength=count + 1)[1:].astype(np.int32)
    table = {
        "panoptic_map": panoptic_map,
        "valid": areas > 0,
        "segment_ids": np.arange(1, count + 1, dtype=np.int32),
        "category_ids": category_ids[1:],
        "is_thing": np.isin(category_ids[1:], np.asarray(thing_ids, np.int64)),
        "areas": areas,
    }
    if pieces.scores is not None:
        scores = np.zeros(count + 1, np.float32)
        np.maximum.at(scores, ids, pieces.scores)
        table["scores"] = scores[1:]
    return table


def _nearest(values: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """A map at another size: of each pixel the value at its centre."""
    rows, columns = (
        np.minimum(((np.arange(new) + 0.5) * (old / new)).astype(int), old - 1)
        for old, new in zip(values.shape, size, strict=True)
    )
    return values[rows[:, None], columns]
