"""`Shapes`: a dataset that draws itself, with exact panoptic truth.

Textured backgrounds (stuff) and overlapping, shaded, noisy shapes (things), of any image size and number. The same
`(seed, index)` always gives the same scene, so nothing is downloaded or stored. Colour is a hint and no more: most
shapes have a hue near that of their class, as things in the world do, but hues overlap, one shape in ten takes any
colour, and every background has several. The nearest mean colour is right for three shapes in four.
"""

from __future__ import annotations

import colorsys
import dataclasses
import functools

import numpy as np

from kmaskformer.data.synthetic_classes import (
    NAMED_CLASSES,
    STUFF_NAMES,
    THING_NAMES,
    SceneClasses,
    ThingLook,
    numbered_classes,
)
from kmaskformer.data.synthetic_textures import TEXTURES, shade, smooth_noise
from kmaskformer.structures import Sample

SHAPES_INFO = NAMED_CLASSES.info


class Shapes:
    """Generated scenes, as a reader.

    Args:
        count: Number of scenes.
        image_size: `(height, width)` of every scene.
        seed: Another seed gives other scenes: train and validation sets differ in it.
        max_objects: Each scene has 1 to `max_objects` shapes before those nearly hidden are taken away.
        noise: Standard deviation of the sensor noise at its strongest, in grey levels.
        num_classes: 0 for the ten classes of `SHAPES_INFO`, or so many, told apart by texture or shape, by colour and
            by pattern; see `numbered_classes`.

    Example:
        >>> reader = Shapes(100, image_size=(96, 128), seed=1)
        >>> reader[0]["image"].shape
        (96, 128, 3)
    """

    def __init__(
        self,
        count: int,
        image_size: tuple[int, int] = (128, 128),
        seed: int = 0,
        max_objects: int = 6,
        noise: float = 8.0,
        num_classes: int = 0,
    ) -> None:
        if count < 1:
            raise ValueError(f"`count` must be a positive number of scenes. Received: count={count}")
        if min(image_size) < 32:
            raise ValueError(f"`image_size` must be at least 32 in height and width. Received: image_size={image_size}")
        if max_objects < 1:
            raise ValueError(f"`max_objects` must be at least 1. Received: max_objects={max_objects}")
        self.classes = numbered_classes(num_classes) if num_classes else NAMED_CLASSES
        self.info = self.classes.info
        self.count = count
        self.image_size = (int(image_size[0]), int(image_size[1]))
        self.seed = seed
        self.max_objects = max_objects
        self.noise = noise

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Sample:
        if not 0 <= index < self.count:
            raise IndexError(f"Scene {index} of a dataset of {self.count}.")
        rng = np.random.default_rng([self.seed, index])
        image, segment_map, labels = draw_scene(rng, self.image_size, self.max_objects, self.noise, self.classes)
        is_crowd = np.zeros(len(labels), bool)
        return Sample(
            image=image, segment_map=segment_map, labels=labels, is_crowd=is_crowd, image_id=f"{self.seed}_{index:06d}"
        )


@dataclasses.dataclass(frozen=True)
class _Shape:
    """A placed shape: `distance` is its signed distance (negative inside), on the window `rows` by `columns`."""

    kind: str
    radius: float
    rows: slice
    columns: slice
    x: np.ndarray
    y: np.ndarray
    distance: np.ndarray
    variant: int = 0


def draw_scene(
    rng: np.random.Generator,
    image_size: tuple[int, int],
    max_objects: int = 6,
    noise: float = 8.0,
    classes: SceneClasses = NAMED_CLASSES,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Draws one scene.

    Args:
        rng: Source of every choice.
        image_size: `(height, width)`.
        max_objects: Largest number of shapes.
        noise: Largest standard deviation of the sensor noise, in grey levels.
        classes: What there is to draw.

    Returns:
        `(image, segment_map, labels)`: `(height, width, 3)` uint8; `(height, width)` int32, every pixel in a segment;
        `(segments,)` int32 class ids, no segment is empty.
    """
    light = rng.uniform(0, 2 * np.pi)
    canvas, band_map, bands = _draw_background(rng, image_size, classes)
    shapes = [_place_shape(rng, image_size, classes) for _ in range(rng.integers(1, max_objects + 1))]
    shapes = _keep_visible(shapes, image_size)
    for shape in shapes:
        _paint_shape(rng, canvas, shape, light, classes)
    owner = _owner_map(shapes, image_size)
    segment_map = np.where(owner >= 0, owner + len(bands), band_map)
    drawn = bands + [(shape.kind, shape.variant) for shape in shapes]
    present = np.bincount(segment_map.ravel(), minlength=len(drawn)) > 0
    segment_map = (np.cumsum(present) - 1)[segment_map]
    labels = np.asarray([classes.ids[look] for look in drawn], np.int32)[present]
    return _expose(rng, canvas, noise), segment_map.astype(np.int32), labels


def _draw_background(
    rng: np.random.Generator, image_size: tuple[int, int], classes: SceneClasses
) -> tuple[np.ndarray, np.ndarray, list[tuple[str, int]]]:
    """Two or three wavy bands of different stuff.

    `(height, width, 3)` float32, band index map, names with variants from the top.
    """
    height, width = image_size
    top = "sky" if rng.random() < 0.75 else "bricks"
    others = [name for name in STUFF_NAMES if name not in ("sky", top)]
    count = 2 if rng.random() < 0.6 else 3
    names = [top, *rng.permutation(others)[: count - 1].tolist()]
    bands = [(name, _draw_variant(rng, len(classes.palettes[name]))) for name in names]
    edges = (np.arange(1, count) + rng.uniform(-0.22, 0.22, count - 1)) / count
    rows = np.arange(height)[:, None]
    band_map = np.zeros(image_size, np.int64)
    for edge in edges:
        band_map += rows >= height * edge + _wave(rng, width) * height
    canvas = np.zeros((height, width, 3), np.float32)
    for index, (name, variant) in enumerate(bands):
        inside = band_map == index
        seen = np.flatnonzero(inside.any(axis=1))
        band = slice(seen[0], seen[-1] + 1)
        base = functools.partial(_base_color, rng, classes.palettes[name][variant])
        texture = TEXTURES[name](rng, base, band.stop - band.start, width, min(image_size) / 128)
        np.copyto(canvas[band], texture, where=inside[band, :, None])
    return canvas, band_map, bands


def _wave(rng: np.random.Generator, width: int) -> np.ndarray:
    """A wavy line as a share of the image's height, `(width,)`; now and then a straight one."""
    steps = np.linspace(0, 2 * np.pi, width)
    roughness = rng.choice([0.0, 0.012, 0.03])
    waves = [np.sin(steps * rng.uniform(0.4, 3.5) + rng.uniform(0, 6.3)) / (order + 1) for order in range(3)]
    return roughness * np.sum(waves, axis=0) + (steps / np.pi - 1) * rng.uniform(-0.05, 0.05)


def _draw_variant(rng: np.random.Generator, count: int) -> int:
    return int(rng.integers(count)) if count > 1 else 0


def _base_color(rng: np.random.Generator, palette: tuple[tuple[int, int, int], ...]) -> np.ndarray:
    return np.asarray(palette[rng.integers(len(palette))], np.float32) + rng.normal(0, 10, 3).astype(np.float32)


def _place_shape(
    rng: np.random.Generator, image_size: tuple[int, int], classes: SceneClasses = NAMED_CLASSES
) -> _Shape:
    """A shape of random kind, size, place, turn and stretch."""
    kind = THING_NAMES[rng.integers(len(THING_NAMES))]
    variant = _draw_variant(rng, len(classes.looks[kind]))
    radius = min(image_size) * rng.uniform(0.13, 0.25)
    center = [size * rng.uniform(0.08, 0.92) for size in image_size]
    reach = int(1.6 * radius) + 4
    rows, columns = (
        slice(max(0, int(middle) - reach), min(size, int(middle) + reach + 1))
        for middle, size in zip(center, image_size, strict=True)
    )
    y = (np.arange(rows.start, rows.stop, dtype=np.float32) - center[0])[:, None]
    x = (np.arange(columns.start, columns.stop, dtype=np.float32) - center[1])[None]
    turn, stretch = rng.uniform(0, 2 * np.pi), rng.uniform(0.85, 1.18)
    turned_x = (np.cos(turn) * x + np.sin(turn) * y) * stretch
    turned_y = (np.cos(turn) * y - np.sin(turn) * x) / stretch
    distance = _DISTANCES[kind](turned_x, turned_y, radius)
    return _Shape(kind, radius, rows, columns, turned_x, turned_y, distance, variant)


def _circle(x: np.ndarray, y: np.ndarray, radius: float) -> np.ndarray:
    return np.hypot(x, y) - 0.95 * radius


def _square(x: np.ndarray, y: np.ndarray, radius: float) -> np.ndarray:
    return np.maximum(np.abs(x), np.abs(y)) - 0.82 * radius


def _triangle(x: np.ndarray, y: np.ndarray, radius: float) -> np.ndarray:
    sides = [np.cos(angle) * x + np.sin(angle) * y for angle in (0, 2 * np.pi / 3, 4 * np.pi / 3)]
    return np.maximum.reduce(sides) - 0.58 * radius


def _star(x: np.ndarray, y: np.ndarray, radius: float) -> np.ndarray:
    outer, inner, half = 1.2 * radius, 0.5 * radius, np.pi / 5
    angle = np.abs((np.arctan2(y, x) + half) % (2 * half) - half)
    length = np.hypot(x, y)
    edge = np.array([inner * np.cos(half) - outer, inner * np.sin(half)])
    normal = np.array([edge[1], -edge[0]]) / np.hypot(*edge)
    return normal[0] * (length * np.cos(angle) - outer) + normal[1] * (length * np.sin(angle))


def _ring(x: np.ndarray, y: np.ndarray, radius: float) -> np.ndarray:
    return np.abs(np.hypot(x, y) - 0.76 * radius) - 0.27 * radius


def _cross(x: np.ndarray, y: np.ndarray, radius: float) -> np.ndarray:
    length, thickness = 1.05 * radius, 0.36 * radius
    lying = np.maximum(np.abs(x) - length, np.abs(y) - thickness)
    standing = np.maximum(np.abs(x) - thickness, np.abs(y) - length)
    return np.minimum(lying, standing)


_DISTANCES = {
    "circle": _circle,
    "square": _square,
    "triangle": _triangle,
    "star": _star,
    "ring": _ring,
    "cross": _cross,
}


def _owner_map(shapes: list[_Shape], image_size: tuple[int, int]) -> np.ndarray:
    """Index of the topmost shape at each pixel, -1 where there is none."""
    owner = np.full(image_size, -1, np.int64)
    for index, shape in enumerate(shapes):
        owner[shape.rows, shape.columns][shape.distance < 0] = index
    return owner


def _keep_visible(shapes: list[_Shape], image_size: tuple[int, int]) -> list[_Shape]:
    """Takes away shapes of which little is seen, before anything is painted, so that the truth stays exact.

    A shape stays if it shows 40 pixels, 0.5 % of the image and 35 % of itself. Taking one away only uncovers others,
    so one pass is enough.
    """
    owner = _owner_map(shapes, image_size)
    seen = np.bincount(owner.ravel() + 1, minlength=len(shapes) + 1)[1:]
    least = max(40, 0.005 * image_size[0] * image_size[1])
    full = [np.pi * 0.5 * shape.radius**2 for shape in shapes]
    return [shape for shape, pixels, area in zip(shapes, seen, full, strict=True) if pixels >= max(least, 0.35 * area)]


def _paint_shape(
    rng: np.random.Generator, canvas: np.ndarray, shape: _Shape, light: float, classes: SceneClasses
) -> None:
    """Paints a shape, its soft shadow first, into `canvas`."""
    window = canvas[shape.rows, shape.columns]
    _cast_shadow(rng, window, shape, light)
    look = classes.looks[shape.kind][shape.variant]
    color = _color(rng, look)
    pattern = _surface(rng, shape, look.pattern)
    # Raised rim: lighter on the side of the light, darker on the other, strongest at the border.
    slope_y, slope_x = np.gradient(shape.distance)
    facing = -(slope_x * np.cos(light) + slope_y * np.sin(light))
    rim = np.exp(shape.distance / (0.30 * shape.radius)) * facing * rng.uniform(0.15, 0.45)
    paint = shade(color, np.clip(pattern + rim, -0.75, 0.75))
    cover = np.clip(0.5 - shape.distance, 0, 1)[..., None]
    window += cover * (paint - window)


def _color(rng: np.random.Generator, look: ThingLook) -> np.ndarray:
    """Colour of a shape, `(3,)` float32 0..255: near its look's hue, or any."""
    if rng.random() < look.any_color:
        hsv = rng.random(), rng.uniform(0.15, 0.95), rng.uniform(0.35, 1.0)
    else:
        hue = (look.hue + look.spread * rng.standard_normal()) % 1.0
        hsv = hue, rng.uniform(0.5, 0.95), rng.uniform(0.45, 1.0)
    return np.asarray(colorsys.hsv_to_rgb(*hsv), np.float32) * 255


def _cast_shadow(rng: np.random.Generator, window: np.ndarray, shape: _Shape, light: float) -> None:
    shift = [round(float(0.14 * shape.radius * part)) for part in (np.sin(light), np.cos(light))]
    (down, right), (height, width) = shift, shape.distance.shape
    spread = np.pad(shape.distance, ((abs(down),) * 2, (abs(right),) * 2), mode="edge")
    moved = spread[abs(down) - down :, abs(right) - right :][:height, :width]
    window *= 1 - rng.uniform(0.2, 0.5) * np.clip(0.6 - moved / (0.25 * shape.radius), 0, 1)[..., None]


def _surface(rng: np.random.Generator, shape: _Shape, pattern: int | None) -> np.ndarray:
    """Brightness pattern on a shape, any where `pattern` is None: 0 plain, 1 stripes, 2 dots, 3 blotches."""
    height, width = shape.distance.shape
    kind, strength, period = rng.integers(4), rng.uniform(0.12, 0.35), shape.radius * rng.uniform(0.3, 0.6)
    kind = kind if pattern is None else pattern
    if kind == 1:
        return strength * np.sign(np.sin(2 * np.pi * shape.x / period))
    if kind == 2:
        waves = np.sin(2 * np.pi * shape.x / period) * np.sin(2 * np.pi * shape.y / period)
        return -strength * (waves > 0.3).astype(np.float32)
    if kind == 3:
        return strength * smooth_noise(rng, height, width, (period, period))
    return np.zeros_like(shape.distance)


def _expose(rng: np.random.Generator, canvas: np.ndarray, noise: float) -> np.ndarray:
    """Uneven light over the scene, exposure, sensor noise; uint8."""
    height, width = canvas.shape[:2]
    lighting = rng.uniform(0.8, 1.12) + 0.14 * smooth_noise(rng, height, width, (height * 0.6, width * 0.6))
    grain = rng.standard_normal(canvas.shape, np.float32) * np.float32(rng.uniform(0.25, 1.0) * noise)
    return np.clip(canvas * lighting[..., None] + grain, 0, 255).astype(np.uint8)
