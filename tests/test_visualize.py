"""Overlays, legends and contact sheets, by their pixels."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from kmaskformer import visualize
from kmaskformer.structures import DatasetInfo, Segment

INFO = DatasetInfo("toy", ("sky", "car"), thing_ids=(1,), colors=((10, 20, 200), (200, 40, 20)))


def row(segment_id: int, category_id: int, area: int, score: float = 0.875) -> Segment:
    return Segment(
        id=segment_id,
        category_id=category_id,
        label=INFO.class_names[category_id],
        is_thing=category_id == 1,
        score=score,
        area=area,
        box=(0, 0, 1, 1),
    )


def scene(height: int = 60, width: int = 80):
    """Grey image; a car at rows 20-39, columns 30-59; sky in rows 0-9."""
    segmentation = np.zeros((height, width), np.int32)
    segmentation[:10], segmentation[20:40, 30:60] = 1, 2
    return np.full((height, width, 3), 100, np.uint8), segmentation, [row(1, 0, 800), row(2, 1, 600)]


def draw(*arguments, **options):
    return np.asarray(visualize.overlay(*arguments, **options)).astype(int)


def test_blends_inside_and_leaves_the_rest_alone():
    image, segmentation, segments = scene()
    drawn = draw(image, segmentation, segments, INFO, alpha=0.25, outlines=False, names=False)
    assert (drawn[segmentation == 0] == 100).all()
    assert (drawn[segmentation == 1] == np.round(75 + 0.25 * np.array(INFO.colors[0]))).all()
    assert (drawn[segmentation == 2] == np.round(75 + 0.25 * np.array(INFO.colors[1]))).all()


def test_outlines_lie_inside_and_are_light_for_things_and_dark_for_stuff():
    image, segmentation, segments = scene()
    plain = draw(image, segmentation, segments, INFO, outlines=False, names=False)
    drawn = draw(image, segmentation, segments, INFO, names=False)
    changed = (drawn != plain).any(-1)
    assert not changed[segmentation == 0].any()
    expected = np.zeros_like(changed)
    expected[20:40, 30:60] = True
    expected[21:39, 31:59] = False
    expected[9] = True  # the picture's edge is no outline of the sky
    np.testing.assert_array_equal(changed, expected)
    assert drawn[20, 40].sum() > plain[20, 40].sum() and drawn[9, 40].sum() < plain[9, 40].sum()


def test_semantic_maps_may_use_id_zero():
    image, segmentation, _ = scene()
    drawn = draw(image, segmentation, [row(0, 0, 3400)], INFO, alpha=1.0, outlines=False, names=False)
    assert (drawn[segmentation == 0] == INFO.colors[0]).all() and (drawn[segmentation > 0] == 100).all()


def test_names_are_written_at_the_thickest_point_if_there_is_room():
    image, segmentation, segments = scene(240, 320)
    segmentation[:] = 0
    segmentation[100:200, 100:260] = 2
    segmentation[10, 10] = 1
    plain = draw(image, segmentation, segments, INFO, names=False)
    named = draw(image, segmentation, segments, INFO)
    ys, xs = np.nonzero((named != plain).any(-1))
    assert len(ys) > 100 and abs(ys.mean() - 150) < 12 and 130 < xs.mean() < 230
    assert ys.min() >= 100 and ys.max() < 200 and xs.min() >= 100 and xs.max() < 260
    longer = draw(image, segmentation, segments, INFO, scores=True)
    assert (longer != plain).any(-1).sum() > (named != plain).any(-1).sum()


def test_a_thing_that_its_name_would_hide_has_it_above():
    image, segmentation, segments = scene(240, 320)
    segmentation[:] = 0
    segmentation[100:114, 150:164] = 2
    segments = segments[1:]
    plain = draw(image, segmentation, segments, INFO, names=False)
    rows = np.nonzero((draw(image, segmentation, segments, INFO) != plain).any(-1))[0]
    assert len(rows) and rows.max() < 101 and rows.min() > 70


def test_instances_of_a_class_have_distinct_shades_and_stuff_has_one():
    segments = [row(i, 1, 10) for i in range(12)] + [row(20, 0, 5), row(21, 0, 5)]
    colors = visualize.segment_colors(segments, INFO)
    assert colors[0] == INFO.colors[1] and colors[12] == colors[13] == INFO.colors[0]
    assert len(set(colors[:12])) == 12
    assert all(0 <= channel <= 255 for color in colors for channel in color)
    # Shades of red stay red.
    assert all(color[0] > max(color[1:]) for color in colors[:12])
    assert visualize.shade((0, 0, 0), 3) != visualize.shade((0, 0, 0), 4)


def test_overlapping_masks_are_drawn_whole():
    image, segmentation, segments = scene()
    masks = np.zeros((2, 60, 80), bool)
    masks[0, :30], masks[1, 20:40, 30:60] = True, True
    drawn = draw(image, segmentation, segments, INFO, masks=masks, alpha=0.5, outlines=False, names=False)
    assert (drawn[masks[0] & ~masks[1]] == 50 + np.array(INFO.colors[0]) // 2).all()
    assert (drawn[masks[1]] == 50 + np.array(INFO.colors[1]) // 2).all()
    assert (drawn[~masks.any(0)] == 100).all()


def test_drawn_at_another_size():
    image, segmentation, segments = scene()
    drawn = draw(image, segmentation, segments, INFO, size=(180, 240), alpha=1.0, outlines=False, names=False)
    assert drawn.shape == (180, 240, 3)
    enlarged = segmentation.repeat(3, axis=0).repeat(3, axis=1)
    assert (drawn[enlarged == 2] == INFO.colors[1]).all() and (drawn[enlarged == 0] == 100).all()


def test_legend_is_added_below_and_wraps():
    image, segmentation, segments = scene(120, 160)
    bare = visualize.overlay(image, segmentation, segments, INFO)
    full = visualize.overlay(image, segmentation, segments, INFO, legend=True)
    assert full.width == bare.width and full.height > bare.height
    np.testing.assert_array_equal(np.asarray(full)[:120], np.asarray(bare))
    strip = np.asarray(full)[120:].reshape(-1, 3).tolist()
    assert all(list(color) in strip for color in INFO.colors)
    assert visualize.overlay(image, segmentation, [], INFO, legend=True).size == bare.size
    narrow, wide = (visualize.draw_legend([0, 1], INFO, width) for width in (60, 400))
    assert narrow.height > wide.height and narrow.width == 60


def test_contact_sheet_enlarges_small_images():
    image, segmentation, segments = scene()
    finished = visualize.overlay(image, segmentation, segments, INFO)
    rows = [(image, (segmentation, segments), (segmentation, segments)), (Image.fromarray(image), finished, finished)]
    sheet = visualize.contact_sheet(rows, INFO, tile_width=200, names=False)
    assert sheet.width == 3 * 200 + 4 * 10 and sheet.height > 2 * 150
    pixels = np.asarray(sheet)
    assert (pixels[40:170, 15:205] == 100).all()  # the first image, untouched
    np.testing.assert_array_equal(pixels[30:180, 220:420], pixels[30:180, 430:630])
    # Finished pictures need no label space.
    bare = visualize.contact_sheet([(image, finished)], titles=("image", "prediction"), tile_width=100)
    assert bare.size == (230, 30 + 75 + 10)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda s: visualize.overlay(s[0][:9], *s[1:], INFO), "height 9, width 80, segmentation with height 60"),
        (lambda s: visualize.overlay(*s, INFO, alpha=2), "`alpha` must lie in 0..1. Received: alpha=2"),
        (lambda s: visualize.contact_sheet([], INFO), "must hold at least one image"),
        (lambda s: visualize.contact_sheet([(s[0],)], INFO), r"one picture per title \(3\). Received: rows of \[1\]"),
        (lambda s: visualize.contact_sheet([(s[0], s[1:], s[1:])]), "`info` must be given to draw segmentations"),
    ],
)
def test_errors(call, message):
    with pytest.raises(ValueError, match=message):
        call(scene())


@pytest.mark.parametrize(
    ("size", "expected"), [((96, 128), (384, 512)), ((320, 500), (320, 500)), ((400, 319), (800, 638))]
)
def test_small_images_are_drawn_enlarged(size, expected):
    assert visualize.readable_size(*size) == expected


def test_a_long_and_narrow_picture_is_not_blown_up():
    assert visualize.readable_size(1, 4000) == (1, 4000)
    assert visualize.readable_size(96, 96) == (384, 384) and visualize.readable_size(100, 1000) == (400, 4000)
