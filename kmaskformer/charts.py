"""Charts of scores: bars by class for one or more runs, and confusion matrices; drawn with Pillow alone."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

Color = tuple[int, int, int]

BACKGROUND: Color = (255, 255, 255)
TEXT: Color = (32, 33, 36)
GRID: Color = (222, 225, 230)
SERIES: tuple[Color, ...] = ((38, 98, 173), (226, 120, 39), (68, 140, 76), (140, 86, 160))
"""Colours of the runs, in order; they stay apart for colour-blind eyes."""
MAX_NAMED = 160
"""A confusion matrix of more classes has no room for their names."""


def bar_chart(
    rows: Sequence[str], series: Mapping[str, Sequence[float]], title: str = "", bar_width: int = 420
) -> Image.Image:
    """Horizontal bars, one group a row with one bar a series, over an axis from 0 to 1.

    Args:
        rows: Name of each row, for instance of a class.
        series: Values of each row, 0..1, NaN where there is none, by the name of the series. Up to four.
        title: Heading.
        bar_width: Length in pixels of a bar of value 1.

    Raises:
        ValueError: If there is no row or no series, there are more than four, or one has another number of values.
    """
    _check_series(rows, series)
    font, bar = ImageFont.load_default(13), 14 if len(series) == 1 else 10
    group = bar * len(series) + 8
    left = 16 + round(max(font.getlength(name) for name in rows))
    top = 34 + (22 if len(series) > 1 else 0)
    picture = Image.new("RGB", (left + bar_width + 64, top + group * len(rows) + 26), BACKGROUND)
    draw = ImageDraw.Draw(picture)
    draw.text((left, 10), title, TEXT, ImageFont.load_default(15))
    _draw_axis(draw, (left, top, left + bar_width, picture.height - 22), font)
    if len(series) > 1:
        _draw_keys(draw, list(series), (left, 34), font)
    for row, name in enumerate(rows):
        y = top + row * group + 4
        draw.text((left - 8, y + bar * len(series) / 2), name, TEXT, font, "rm")
        for number, values in enumerate(series.values()):
            box = (left, y + number * bar, left + bar_width, y + (number + 1) * bar - 2)
            _draw_bar(draw, box, float(values[row]), SERIES[number], font)
    return picture


def confusion_chart(confusion: np.ndarray, class_names: Sequence[str], title: str = "") -> Image.Image:
    """A confusion matrix as colours: how each true class (row) was predicted (column), in parts of the row.

    Args:
        confusion: `(classes, classes)` or, with void as the last column, `(classes, classes + 1)` counts.
        class_names: Name of each class.
        title: Heading.

    Raises:
        ValueError: If the matrix does not fit the names.
    """
    confusion, classes = np.asarray(confusion), len(class_names)
    if confusion.shape not in ((classes, classes), (classes, classes + 1)):
        raise ValueError(
            f"`confusion` must have one row per class ({classes}) and one column per class, or one more for void. "
            f"Received: shape {confusion.shape}"
        )
    shares = confusion / np.maximum(confusion.sum(axis=1, keepdims=True), 1)
    cell = 30 if classes <= 25 else 14 if classes <= MAX_NAMED else 2
    grid = Image.fromarray(_shades(shares)).resize(
        (cell * confusion.shape[1], cell * classes), Image.Resampling.NEAREST
    )
    columns = [*class_names, "void"][: confusion.shape[1]]
    return _with_names(grid, class_names, columns, shares, cell, title)


def _check_series(rows: Sequence[str], series: Mapping[str, Sequence[float]]) -> None:
    if not rows or not 1 <= len(series) <= len(SERIES):
        raise ValueError(
            f"A bar chart needs rows and 1..{len(SERIES)} series. Received: {len(rows)} rows, {len(series)} series"
        )
    lengths = {name: len(values) for name, values in series.items()}
    if set(lengths.values()) != {len(rows)}:
        raise ValueError(f"Each series must have one value per row ({len(rows)}). Received: {lengths}")


def _draw_axis(draw: ImageDraw.ImageDraw, box: tuple[int, int, int, int], font: ImageFont.ImageFont) -> None:
    left, top, right, bottom = box
    for tenths in range(0, 11, 2):
        x = left + (right - left) * tenths / 10
        draw.line((x, top, x, bottom), GRID)
        draw.text((x, bottom + 4), f"{tenths / 10:.1f}", TEXT, font, "mt")


def _draw_keys(
    draw: ImageDraw.ImageDraw, names: Sequence[str], start: tuple[int, int], font: ImageFont.ImageFont
) -> None:
    x, y = start
    for name, color in zip(names, SERIES, strict=False):
        draw.rectangle((x, y + 3, x + 10, y + 13), color)
        draw.text((x + 16, y + 8), name, TEXT, font, "lm")
        x += 16 + round(font.getlength(name)) + 24


def _draw_bar(
    draw: ImageDraw.ImageDraw,
    box: tuple[int, int, int, int],
    value: float,
    color: Color,
    font: ImageFont.ImageFont,
) -> None:
    left, top, right, bottom = box
    length = 0 if math.isnan(value) else round((right - left) * min(max(value, 0.0), 1.0))
    if length:
        draw.rectangle((left, top, left + length - 1, bottom), color)
    shown = "-" if math.isnan(value) else f"{value:.3f}"
    small = ImageFont.load_default(min(font.size, bottom - top + 2))
    draw.text((left + length + 5, (top + bottom) / 2), shown, TEXT, small, "lm")


def _shades(shares: np.ndarray) -> np.ndarray:
    """White for 0 to dark blue for 1, `(rows, columns, 3)` uint8; small shares are lifted, so that they show."""
    strength = np.sqrt(np.clip(shares, 0.0, 1.0))[..., None]
    return np.round(np.float64(BACKGROUND) * (1 - strength) + np.float64((8, 48, 107)) * strength).astype(np.uint8)


def _with_names(
    grid: Image.Image,
    rows: Sequence[str],
    columns: Sequence[str],
    shares: np.ndarray,
    cell: int,
    title: str,
) -> Image.Image:
    named = cell > 2
    font = ImageFont.load_default(min(13, cell)) if named else ImageFont.load_default(13)
    widest = round(max(font.getlength(name) for name in columns)) + 12 if named else 12
    left, top = widest + 18, widest + 40
    heading = ImageFont.load_default(15)
    width = max(left + grid.width + 16, round(heading.getlength(title)) + 24)
    picture = Image.new("RGB", (width, top + grid.height + 16), BACKGROUND)
    picture.paste(grid, (left, top))
    draw = ImageDraw.Draw(picture)
    draw.text((12, 10), title, TEXT, heading)
    draw.rectangle((left - 1, top - 1, left + grid.width, top + grid.height), outline=GRID)
    if named:
        for row, name in enumerate(rows):
            draw.text((left - 8, top + (row + 0.5) * cell), name, TEXT, font, "rm")
        for column, name in enumerate(columns):
            _draw_upright(picture, name, (left + column * cell, top - 6), cell, font)
    if cell >= 30:
        _draw_shares(draw, shares, (left, top), cell)
    return picture


def _draw_upright(picture: Image.Image, text: str, foot: tuple[int, int], cell: int, font: ImageFont.ImageFont) -> None:
    strip = Image.new("RGB", (round(font.getlength(text)) + 2, cell), BACKGROUND)
    ImageDraw.Draw(strip).text((0, cell / 2), text, TEXT, font, "lm")
    strip = strip.rotate(90, expand=True)
    picture.paste(strip, (foot[0], foot[1] - strip.height))


def _draw_shares(draw: ImageDraw.ImageDraw, shares: np.ndarray, origin: tuple[int, int], cell: int) -> None:
    font = ImageFont.load_default(11)
    for row, column in zip(*np.nonzero(shares >= 0.005), strict=True):
        center = (origin[0] + (column + 0.5) * cell, origin[1] + (row + 0.5) * cell)
        color = (255, 255, 255) if shares[row, column] > 0.3 else TEXT
        draw.text(center, f"{100 * shares[row, column]:.0f}", color, font, "mm")
