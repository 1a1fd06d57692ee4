"""Pictures of segmentations: overlays with names, legends, and sheets that compare truth with predictions.

Everything is drawn at the size it will be seen at: a small image is enlarged first, so that outlines stay thin and
names stay readable.
"""

from __future__ import annotations

import colorsys
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from scipy import ndimage

from kmaskformer.structures import DatasetInfo, Segment

Color = tuple[int, int, int]
Box = tuple[float, float, float, float]

BACKGROUND: Color = (250, 250, 250)
TEXT: Color = (32, 33, 36)


def overlay(
    image: np.ndarray | Image.Image,
    segmentation: np.ndarray,
    segments: Sequence[Segment],
    info: DatasetInfo,
    masks: np.ndarray | None = None,
    size: tuple[int, int] | None = None,
    alpha: float = 0.5,
    outlines: bool = True,
    names: bool = True,
    scores: bool = False,
    legend: bool = False,
) -> Image.Image:
    """An image with its segments drawn over it.

    Classes have their colours, and the instances of a thing class shades of it. Pixels that are in no segment stay as
    they are.

    Args:
        image: `(height, width, 3)` uint8 RGB, or a PIL image.
        segmentation: `(height, width)` int, the id of each pixel's segment.
        segments: The rows whose `id` occurs in `segmentation`; other values are not drawn.
        info: The label space.
        masks: `(segments, height, width)` bool, drawn in place of `segmentation` where segments overlap.
        size: `(height, width)` to draw at; the image's own if None.
        alpha: Opacity of the colours, 0..1.
        outlines: Whether segments have an outline, light for things and dark for stuff.
        names: Whether segments that have room for it show their class name.
        scores: Whether the score follows the name, in per cent.
        legend: Whether a legend of the classes is added below, which makes the picture taller.

    Raises:
        ValueError: If image and segmentation differ in size, or `alpha` is out of range.
    """
    if not 0 <= alpha <= 1:
        raise ValueError(f"`alpha` must lie in 0..1. Received: alpha={alpha}")
    picture, regions = _at_size(image, segmentation, segments, masks, size)
    colors = segment_colors(segments, info)
    # Large segments first, so that small ones and their outlines lie on top where masks overlap.
    order = sorted(range(len(segments)), key=lambda i: -int(segments[i]["area"]))
    pixels = np.asarray(picture).astype(np.float32)
    canvas = pixels.copy()
    for index in order:
        # Over the image itself: many masks on one another shall not hide it.
        canvas[regions[index]] = (1 - alpha) * pixels[regions[index]] + alpha * np.float32(colors[index])
    thickness = max(1, round(min(canvas.shape[:2]) / 400))
    for index in order if outlines else ():
        _draw_outline(canvas, regions[index], colors[index], segments[index]["is_thing"], thickness)
    picture = Image.fromarray(np.clip(np.round(canvas), 0, 255).astype(np.uint8))
    if names:
        captions = [_caption(segment, scores) for segment in segments]
        _draw_names(picture, [(regions[i], colors[i], captions[i], segments[i]["is_thing"]) for i in order])
    return add_legend(picture, segments, info) if legend else picture


def readable_size(height: int, width: int, least_side: int = 320, longest_side: int = 4096) -> tuple[int, int]:
    """Size to draw an image at: a whole multiple, whose shorter side has `least_side` pixels or more.

    On a small image the names of its segments would cover them. A long and narrow one is enlarged as far as its longer
    side stays within `longest_side`.
    """
    factor = min(-(-least_side // min(height, width)), max(1, longest_side // max(height, width)))
    return height * factor, width * factor


def segment_colors(segments: Sequence[Segment], info: DatasetInfo) -> list[Color]:
    """A colour for each segment: its class' colour, shaded for the second and later instances of a thing class."""
    seen: dict[int, int] = {}
    colors = []
    for segment in segments:
        category_id = segment["category_id"]
        number = seen.get(category_id, 0)
        seen[category_id] = number + 1
        colors.append(shade(info.colors[category_id], number if segment["is_thing"] else 0))
    return colors


def shade(color: Color, number: int) -> Color:
    """The `number`-th shade of a colour; 0 is the colour itself.

    Shades move in hue by up to a twentieth of the circle and in lightness, so that neighbours differ and the class can
    still be recognised.
    """
    if number == 0:
        return color
    hue, lightness, saturation = colorsys.rgb_to_hls(*(channel / 255 for channel in color))
    step = (number * 0.618033988749895) % 1.0 - 0.5
    lightness = min(max(lightness, 0.35), 0.7) + (0.14, -0.14, 0.0, 0.22, -0.2)[number % 5]
    red, green, blue = colorsys.hls_to_rgb((hue + step / 10) % 1.0, lightness, min(1.0, max(saturation, 0.35)))
    return round(red * 255), round(green * 255), round(blue * 255)


def add_legend(picture: Image.Image, segments: Sequence[Segment], info: DatasetInfo) -> Image.Image:
    """The picture with a strip below it that names the classes of `segments`, largest first; as it is without any."""
    areas: dict[int, int] = {}
    for segment in segments:
        areas[segment["category_id"]] = areas.get(segment["category_id"], 0) + segment["area"]
    if not areas:
        return picture
    strip = draw_legend(sorted(areas, key=lambda i: -areas[i]), info, picture.width)
    result = Image.new("RGB", (picture.width, picture.height + strip.height), BACKGROUND)
    result.paste(picture, (0, 0))
    result.paste(strip, (0, picture.height))
    return result


def draw_legend(category_ids: Sequence[int], info: DatasetInfo, width: int) -> Image.Image:
    """A strip of colour patches with class names, as many rows as needed.

    Args:
        category_ids: Contiguous class ids, in the order to show.
        info: The label space.
        width: Width of the strip in pixels.
    """
    font = ImageFont.load_default(min(max(width // 45, 12), 16))
    row = round(font.size * 1.7)
    places, x, y = [], row // 3, row // 3
    for category_id in category_ids:
        advance = round(font.size * 1.4 + font.getlength(info.class_names[category_id]) + font.size)
        if x + advance > width and x > row // 3:
            x, y = row // 3, y + row
        places.append((category_id, x, y))
        x += advance
    strip = Image.new("RGB", (width, y + row + row // 6), BACKGROUND)
    draw = ImageDraw.Draw(strip)
    for category_id, left, top in places:
        box = (left, top, left + font.size, top + font.size)
        draw.rounded_rectangle(box, radius=font.size // 5, fill=info.colors[category_id])
        draw.text((left + font.size * 1.4, top + font.size / 2), info.class_names[category_id], TEXT, font, "lm")
    return strip


def contact_sheet(
    rows: Sequence[Sequence[Any]],
    info: DatasetInfo | None = None,
    titles: Sequence[str] = ("image", "truth", "prediction"),
    tile_width: int = 360,
    legend: bool = True,
    captions: Sequence[str] | None = None,
    **options: Any,
) -> Image.Image:
    """A sheet with one row per image: the image, then overlays of one or more segmentations of it.

    Args:
        rows: For each image a sequence of the image, `(height, width, 3)` uint8 or PIL, and of pairs
            `(segmentation, segments)` or triples `(segmentation, segments, masks)` to draw over it, for instance truth
            and prediction. Finished pictures may take the place of pairs, but small ones come out less sharp.
        info: The label space; may be left out where there are finished pictures only.
        titles: Headings of the columns.
        tile_width: Width in pixels at which each picture is drawn, larger or smaller than it is.
        legend: Whether a legend of all classes that occur in pairs is added below.
        captions: A line of text above each row.
        **options: Further options of `overlay`, for instance `alpha` or `names`.

    Raises:
        ValueError: If there is no row, a row has another number of pictures than there are titles, or there are
            segmentations and no `info`.
    """
    _check_rows(rows, titles, info, captions)
    tiles = [_draw_row(row, info, tile_width, options) for row in rows]
    gap, heading, line = 10, 30, 20 if captions else 0
    heights = [max(tile.height for tile in row) for row in tiles]
    width = gap + len(titles) * (tile_width + gap)
    sheet = Image.new("RGB", (width, heading + sum(heights) + (gap + line) * len(rows)), BACKGROUND)
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(16)
    for column, title in enumerate(titles):
        draw.text((gap + column * (tile_width + gap) + tile_width / 2, heading / 2), title, TEXT, font, "mm")
    top = heading
    for index, (row, height) in enumerate(zip(tiles, heights, strict=True)):
        if captions:
            draw.text((gap, top + line / 2), captions[index], TEXT, ImageFont.load_default(13), "lm")
            top += line
        for column, tile in enumerate(row):
            sheet.paste(tile, (gap + column * (tile_width + gap), top))
        top += height + gap
    segments = [segment for row in rows for panel in row if _is_segmentation(panel) for segment in panel[1]]
    return add_legend(sheet, segments, info) if legend else sheet


def _is_segmentation(panel: Any) -> bool:
    return isinstance(panel, tuple)


def _check_rows(
    rows: Sequence[Sequence[Any]], titles: Sequence[str], info: DatasetInfo | None, captions: Sequence[str] | None
) -> None:
    if not rows:
        raise ValueError("`rows` must hold at least one image. Received: no row")
    lengths = sorted({len(row) for row in rows})
    if lengths != [len(titles)]:
        raise ValueError(f"Each row must have one picture per title ({len(titles)}). Received: rows of {lengths}")
    if captions is not None and len(captions) != len(rows):
        raise ValueError(f"`captions` must hold one text per row ({len(rows)}). Received: {len(captions)}")
    if info is None and any(_is_segmentation(panel) for row in rows for panel in row):
        raise ValueError("`info` must be given to draw segmentations. Received: info=None")


def _draw_row(row: Sequence[Any], info: DatasetInfo | None, width: int, options: dict[str, Any]) -> list[Image.Image]:
    image = _as_picture(row[0])
    size = (max(1, round(image.height * width / image.width)), width)
    tiles = [_resized(image, size)]
    for panel in row[1:]:
        if _is_segmentation(panel):
            segmentation, segments, *masks = panel
            tiles.append(overlay(image, segmentation, segments, info, *masks, size=size, **options))
        else:
            picture = _as_picture(panel)
            tiles.append(_resized(picture, (max(1, round(picture.height * width / picture.width)), width)))
    return tiles


def _at_size(
    image: Any, segmentation: np.ndarray, segments: Sequence[Segment], masks: np.ndarray | None, size: Any
) -> tuple[Image.Image, list[np.ndarray]]:
    """Picture, and region `(height, width)` bool of each segment, at the size to draw at."""
    picture = _as_picture(image)
    height, width = np.shape(segmentation)
    if (height, width) != (picture.height, picture.width):
        raise ValueError(
            "Image and segmentation must have the same size. Received: image with height "
            f"{picture.height}, width {picture.width}, segmentation with height {height}, width {width}"
        )
    size = size or (height, width)
    rows = np.arange(size[0]) * height // size[0]
    columns = np.arange(size[1]) * width // size[1]
    segmentation = np.asarray(segmentation)
    regions = masks if masks is not None else [segmentation == segment["id"] for segment in segments]
    return _resized(picture, size), [np.asarray(region, bool)[rows[:, None], columns] for region in regions]


def _as_picture(image: Any) -> Image.Image:
    if isinstance(image, Image.Image):
        return image.convert("RGB")
    return Image.fromarray(np.ascontiguousarray(np.asarray(image, np.uint8)))


def _resized(picture: Image.Image, size: tuple[int, int]) -> Image.Image:
    if (picture.height, picture.width) == tuple(size):
        return picture
    return picture.resize((size[1], size[0]), Image.Resampling.BICUBIC)


def _draw_outline(canvas: np.ndarray, region: np.ndarray, color: Color, is_thing: bool, thickness: int) -> None:
    """Paints the region's own outermost pixels, so that nothing outside it changes."""
    if not region.any():
        return
    window = _window(region, margin=thickness)
    inside = region[window]
    # The edge of the picture is no outline: what lies beyond counts as inside.
    edge = inside & ~ndimage.binary_erosion(inside, iterations=thickness, border_value=1)
    towards, strength = ((255, 255, 255), 0.75) if is_thing else ((0, 0, 0), 0.45)
    line = np.array(color, np.float32) * (1 - strength) + np.array(towards, np.float32) * strength
    canvas[window][edge] = 0.15 * canvas[window][edge] + 0.85 * line


def _window(region: np.ndarray, margin: int) -> tuple[slice, slice]:
    """The region's box with a margin, cut at the picture's edge."""
    box = ndimage.find_objects(region.astype(np.uint8))[0]
    return tuple(slice(max(side.start - margin, 0), side.stop + margin) for side in box)


def _caption(segment: Segment, scores: bool) -> str:
    return f"{segment['label']} {segment['score']:.0%}" if scores else segment["label"]


def _draw_names(picture: Image.Image, entries: Sequence[tuple[np.ndarray, Color, str, bool]]) -> None:
    """Writes each name where its region is thickest, if it has room and no other name is there.

    A thing that its name would hide has it above itself.
    """
    draw = ImageDraw.Draw(picture, "RGBA")
    font = ImageFont.load_default(min(max(min(picture.size) / 32, 11), 30))
    taken: list[Box] = []
    for region, color, caption, is_thing in entries:
        x, y, radius = _thickest_point(region)
        if radius < 0.4 * font.size:
            continue
        box = _text_box(x, y, caption, font, picture.size)
        if is_thing and (box[2] - box[0]) * (box[3] - box[1]) > 0.4 * region.sum():
            top = np.flatnonzero(region.any(axis=1))[0]
            box = _text_box(x, top - 0.8 * font.size, caption, font, picture.size)
        if any(_intersect(box, other) for other in taken):
            continue
        taken.append(box)
        fill = tuple(round(channel * 0.35) for channel in color)
        draw.rounded_rectangle(box, radius=font.size * 0.3, fill=(*fill, 190))
        draw.text(((box[0] + box[2]) / 2, (box[1] + box[3]) / 2), caption, (255, 255, 255), font, "mm")


def _thickest_point(region: np.ndarray) -> tuple[int, int, float]:
    """Centre x, y and radius of the largest circle inside the region; the picture's edge bounds it."""
    if not region.any():
        return 0, 0, 0.0
    window = _window(region, margin=0)
    distances = ndimage.distance_transform_edt(np.pad(region[window], 1))[1:-1, 1:-1]
    y, x = np.unravel_index(distances.argmax(), distances.shape)
    return int(x) + window[1].start, int(y) + window[0].start, float(distances[y, x])


def _text_box(x: float, y: float, caption: str, font: Any, size: tuple[int, int]) -> Box:
    """Box of the caption around `(x, y)`, moved into the picture."""
    width, height = font.getlength(caption) + 0.7 * font.size, 1.35 * font.size
    left = min(max(x - width / 2, 0), max(size[0] - width - 1, 0))
    top = min(max(y - height / 2, 0), max(size[1] - height - 1, 0))
    return left, top, left + width, top + height


def _intersect(first: Box, second: Box) -> bool:
    return first[0] < second[2] and second[0] < first[2] and first[1] < second[3] and second[1] < first[3]
