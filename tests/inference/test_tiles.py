"""Tiles cover a picture, and what is cut apart comes together again."""

import itertools

import numpy as np
import pytest

from kmaskformer.inference.tiles import Tiling, stitch, stitch_maps, stitch_panoptic

THING, STUFF = 0, 1


def cut(panoptic_map, categories, tiles):
    """Results of a model that sees in each tile just what is there, numbered anew."""
    results = []
    for tile in tiles:
        part = panoptic_map[tile.region]
        ids = np.array([number for number in np.unique(part) if number], np.int64)[::-1]
        numbers = np.zeros(panoptic_map.max() + 1, np.int32)
        numbers[ids] = np.arange(1, len(ids) + 1)
        results.append(
            {
                "panoptic_map": numbers[part],
                "valid": np.ones(len(ids), bool),
                "segment_ids": np.arange(1, len(ids) + 1),
                "category_ids": np.array([categories[number] for number in ids], np.int64),
                "scores": np.full(len(ids), 0.5) + 0.001 * len(results),
            }
        )
    return results


def same_partition(one, other):
    """Whether two maps have the same segments, whatever their numbers, and the same void."""
    pairs = np.unique(np.stack([one.ravel(), other.ravel()]), axis=1)
    return all(len(np.unique(row)) == pairs.shape[1] for row in pairs) and bool(((one == 0) == (other == 0)).all())


@pytest.mark.parametrize("size, overlap", [(16, 0.5), (16, 0.0), (7, 0.3), (64, 0.9), (1, 0.0), (500, 0.5)])
@pytest.mark.parametrize("height, width", [(37, 64), (1, 1), (16, 100)])
def test_cores_cover_the_picture_once_and_lie_in_their_regions(size, overlap, height, width):
    covered = np.zeros((height, width), int)
    for tile in Tiling(size, overlap).tiles(height, width):
        covered[tile.core] += 1
        for core, region, length in zip(tile.core, tile.region, (height, width), strict=True):
            assert region.start <= core.start < core.stop <= region.stop
            assert region.stop - region.start == min(size, length)
    assert (covered == 1).all()


def test_neighbours_share_at_least_the_overlap():
    for length, size, overlap in itertools.product(range(20, 90, 7), (8, 12, 16), (0.25, 0.5)):
        tiles = Tiling(size, overlap).tiles(size, length)
        for one, other in itertools.pairwise(tiles):
            assert one.region[1].stop - other.region[1].start >= overlap * size


def test_no_more_tiles_than_the_overlap_asks_for():
    assert [tile.region[1].start for tile in Tiling(10, 0.8).tiles(10, 30)] == list(range(0, 21, 2))
    assert len(Tiling(128, 0.5).tiles(512, 512)) == 49


def test_the_smaller_picture_is_one_tile():
    (tile,) = Tiling(64).tiles(20, 30)
    assert tile.region == tile.core == (slice(0, 20), slice(0, 30))


@pytest.mark.parametrize("size, overlap", [(0, 0.5), (-3, 0.5), (8, 1.0), (8, -0.1), (8, float("nan"))])
def test_a_tiling_that_cannot_be_is_refused(size, overlap):
    with pytest.raises(ValueError, match=f"size={size}"):
        Tiling(size, overlap)


def test_maps_of_tiles_give_the_map():
    values = np.random.default_rng(0).integers(0, 9, (45, 70))
    tiles = Tiling(20, 0.4).tiles(45, 70)
    np.testing.assert_array_equal(stitch_maps([values[tile.region] for tile in tiles], tiles), values)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("overlap", [0.3, 0.5, 0.75])
def test_a_faithful_model_gives_the_whole_truth(seed, overlap):
    """Discs of up to three tiles across and bands of stuff come out as they were, whatever the tiles numbered them."""
    random = np.random.default_rng(seed)
    rows, columns = np.mgrid[:90, :130]
    truth = np.where(columns < 60, 1, 2).astype(np.int64)
    categories = {1: STUFF, 2: 2}
    for number in range(3, 12):
        (row, column), radius = random.uniform(0, (90, 130)), random.uniform(4, 45 if number == 3 else 12)
        truth[(rows - row) ** 2 + (columns - column) ** 2 < radius**2] = number
        categories[number] = THING
    truth[:3, :5] = 0
    kept = [number for number in categories if _is_connected(truth == number) or number < 3]
    truth[~np.isin(truth, [0, *kept])] = 1
    tiles = Tiling(32, overlap).tiles(*truth.shape)
    result = stitch_panoptic(cut(truth, categories, tiles), tiles, truth.shape, [THING])
    assert same_partition(result["panoptic_map"], truth)
    found = result["panoptic_map"]
    for segment_id, category_id, is_thing, area in zip(
        *(result[key] for key in ("segment_ids", "category_ids", "is_thing", "areas")), strict=True
    ):
        (number,) = np.unique(truth[found == segment_id])
        assert (category_id, is_thing) == (categories[number], categories[number] == THING)
        assert area == (truth == number).sum()
    assert result["valid"].all() and result["panoptic_map"].dtype == np.int32


def _is_connected(mask):
    from scipy import ndimage

    return ndimage.label(mask)[1] == 1


def test_touching_instances_stay_apart():
    truth = np.zeros((16, 64), np.int64)
    truth[4:12, 10:30], truth[4:12, 30:50] = 1, 2
    tiles = Tiling(16, 0.5).tiles(*truth.shape)
    result = stitch_panoptic(cut(truth, {1: THING, 2: THING}, tiles), tiles, truth.shape, [THING])
    assert same_partition(result["panoptic_map"], truth)


def test_what_the_tiles_disagree_about_is_not_counted_twice():
    """An instance of which the other tile's core shows but a sliver, seen there as another class, leaves no sliver."""
    tiles = Tiling(16, 0.5).tiles(16, 24)
    maps = np.zeros((2, 16, 16), np.int32)
    maps[0][2:14, 2:16], maps[1][2:14, 0:6] = 1, 1
    columns = {"valid": np.array([True]), "segment_ids": np.array([1])}
    results = [{"panoptic_map": maps[i], "category_ids": np.array([i]), **columns} for i in range(2)]
    result = stitch_panoptic(results, tiles, (16, 24), [0, 1])
    assert result["category_ids"].tolist() == [0]
    assert result["areas"].tolist() == [12 * 14]
    assert "scores" not in result


def test_what_only_the_other_tile_found_is_there():
    """Tile 0 found an instance that reaches into the core of tile 1, which found nothing there."""
    tiles = Tiling(16, 0.5).tiles(16, 24)
    maps = np.zeros((2, 16, 16), np.int32)
    maps[0][2:14, 4:15], maps[1][2:14, 10:14] = 1, 1
    columns = {"valid": np.array([True]), "segment_ids": np.array([1]), "category_ids": np.array([THING])}
    result = stitch_panoptic([{"panoptic_map": part, **columns} for part in maps], tiles, (16, 24), [THING])
    assert sorted(result["areas"].tolist()) == [12 * 4, 12 * 11]
    assert (result["panoptic_map"][2:14, 4:15] == result["panoptic_map"][2, 4]).all()


def test_the_score_is_the_highest_of_the_parts():
    truth = np.ones((16, 32), np.int64)
    tiles = Tiling(16, 0.5).tiles(16, 32)
    result = stitch_panoptic(cut(truth, {1: STUFF}, tiles), tiles, truth.shape, [THING])
    np.testing.assert_allclose(result["scores"], [0.502])


def test_nothing_found_anywhere():
    tiles = Tiling(16, 0.5).tiles(16, 32)
    result = stitch_panoptic(cut(np.zeros((16, 32), np.int64), {}, tiles), tiles, (16, 32), [THING])
    assert result["panoptic_map"].shape == (16, 32) and not result["panoptic_map"].any() and not len(result["valid"])


@pytest.mark.parametrize("size", [(8, 16), (32, 64), (15, 33)])
def test_the_result_has_the_size_asked_for(size):
    truth = np.zeros((16, 32), np.int64)
    truth[4:12, 6:26] = 1
    tiles = Tiling(16, 0.5).tiles(16, 32)
    result = stitch(cut(truth, {1: THING}, tiles), tiles, size, [THING])
    share = result["areas"][0] / (size[0] * size[1])
    assert result["panoptic_map"].shape == size and abs(share - 160 / 512) < 0.05
    classes = stitch([{"class_map": truth[tile.region]} for tile in tiles], tiles, size, [THING])["class_map"]
    np.testing.assert_array_equal(classes, result["panoptic_map"])


def test_what_is_lost_in_a_smaller_result_is_not_valid():
    truth = np.zeros((16, 32), np.int64)
    truth[0, 0], truth[5:, 8:] = 1, 2
    tiles = Tiling(16, 0.5).tiles(16, 32)
    result = stitch(cut(truth, {1: THING, 2: THING}, tiles), tiles, (4, 8), [THING])
    assert sorted(zip(result["valid"].tolist(), (result["areas"] > 0).tolist(), strict=True)) == [
        (False, False),
        (True, True),
    ]


def test_instances_are_refused():
    with pytest.raises(ValueError, match="masks"):
        stitch([{"masks": np.zeros((1, 4, 4), bool)}], Tiling(4).tiles(4, 4), (4, 4), [0])
