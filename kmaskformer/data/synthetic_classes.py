"""The classes of generated scenes: ten with names, or any number, told apart by form, colour and pattern."""

from __future__ import annotations

import colorsys
import dataclasses

from kmaskformer.structures import DatasetInfo

STUFF_NAMES = ("sky", "grass", "water", "bricks")
THING_NAMES = ("circle", "square", "triangle", "star", "ring", "cross")

Palette = tuple[tuple[int, int, int], ...]
"""Base colours, of which a texture takes one."""

NUM_PATTERNS = 4
"""Plain, stripes, dots, blotches."""


@dataclasses.dataclass(frozen=True)
class ThingLook:
    """How the shapes of a class look.

    Args:
        hue: Typical hue, 0..1 around the colour circle.
        spread: Standard deviation of the hue.
        any_color: Share of the shapes that take any colour.
        pattern: Number of the surface pattern; None for any.
    """

    hue: float
    spread: float = 0.035
    any_color: float = 0.1
    pattern: int | None = None


@dataclasses.dataclass(frozen=True)
class SceneClasses:
    """What scenes are made of. A texture or a shape in each of its variants is a class.

    Args:
        info: The label space.
        ids: Contiguous class id of `(name, variant)`.
        palettes: Colours of every variant of each texture.
        looks: Look of every variant of each shape.
    """

    info: DatasetInfo
    ids: dict[tuple[str, int], int]
    palettes: dict[str, tuple[Palette, ...]]
    looks: dict[str, tuple[ThingLook, ...]]


NAMED_CLASSES = SceneClasses(
    info=DatasetInfo(
        name="shapes",
        class_names=STUFF_NAMES + THING_NAMES,
        thing_ids=tuple(range(len(STUFF_NAMES), len(STUFF_NAMES) + len(THING_NAMES))),
        colors=(
            (135, 190, 235),
            (96, 153, 45),
            (38, 84, 168),
            (158, 88, 66),
            (230, 57, 70),
            (255, 183, 3),
            (131, 56, 236),
            (255, 110, 200),
            (6, 214, 160),
            (251, 133, 0),
        ),
    ),
    ids={(name, 0): index for index, name in enumerate(STUFF_NAMES + THING_NAMES)},
    palettes={
        "sky": (((110, 165, 225), (150, 190, 220), (225, 165, 120), (165, 170, 180), (70, 95, 160)),),
        "grass": (((80, 135, 50), (125, 145, 60), (60, 105, 55), (165, 155, 85)),),
        "water": (((40, 90, 150), (45, 125, 145), (75, 100, 120), (120, 150, 175)),),
        "bricks": (((160, 85, 65), (140, 110, 90), (125, 125, 130), (185, 140, 105)),),
    },
    looks={
        "circle": (ThingLook(0.99),),
        "square": (ThingLook(0.16),),
        "triangle": (ThingLook(0.76),),
        "star": (ThingLook(0.88),),
        "ring": (ThingLook(0.45),),
        "cross": (ThingLook(0.07),),
    },
)


def numbered_classes(num_classes: int) -> SceneClasses:
    """Any number of classes, two in five of them stuff.

    The variants of a texture differ in hue. Those of a shape differ in pattern first, then in hue too, so that with
    many classes no single cue tells them apart. No shape takes any colour: that would be a limit to every model.

    Args:
        num_classes: Number of classes, at least 10.

    Raises:
        ValueError: If `num_classes` is smaller than 10: each texture and each shape is a class at least.
    """
    least = len(STUFF_NAMES) + len(THING_NAMES)
    if num_classes < least:
        raise ValueError(f"`num_classes` must be at least {least}, or 0. Received: num_classes={num_classes}")
    num_stuff = round(0.4 * num_classes)
    stuff = _shared_out(STUFF_NAMES, num_stuff)
    things = _shared_out(THING_NAMES, num_classes - num_stuff)
    names = [(name, variant) for counts in (stuff, things) for name in counts for variant in range(counts[name])]
    info = DatasetInfo(
        name=f"shapes_{num_classes}",
        class_names=tuple(f"{name} {variant + 1}" for name, variant in names),
        thing_ids=tuple(range(num_stuff, num_classes)),
    )
    return SceneClasses(
        info=info,
        ids={name: index for index, name in enumerate(names)},
        palettes={name: tuple((_tint(i / count),) for i in range(count)) for name, count in stuff.items()},
        looks={name: _looks(count) for name, count in things.items()},
    )


def _shared_out(names: tuple[str, ...], count: int) -> dict[str, int]:
    return {name: count // len(names) + (index < count % len(names)) for index, name in enumerate(names)}


def _tint(hue: float) -> tuple[int, int, int]:
    red, green, blue = (round(255 * channel) for channel in colorsys.hsv_to_rgb(hue, 0.65, 0.65))
    return red, green, blue


def _looks(count: int) -> tuple[ThingLook, ...]:
    num_hues = -(-count // NUM_PATTERNS)
    spread = min(0.035, 0.15 / num_hues)
    return tuple(
        ThingLook((i // NUM_PATTERNS) / num_hues, spread, any_color=0.0, pattern=i % NUM_PATTERNS) for i in range(count)
    )
