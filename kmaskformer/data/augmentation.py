"""The training transforms of the published recipes, and the usual ones for your own images, as one chain."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from kmaskformer.data import transforms
from kmaskformer.data.arguments import refuse_negative, require_size
from kmaskformer.data.color import ssd_color
from kmaskformer.data.transforms import Transform
from kmaskformer.data.windows import Nearest


def transform_chain(
    *,
    shortest_edges: Sequence[int] = (),
    longest_edge: int = 0,
    scale_range: Sequence[float] = (),
    stretch: float = 0.0,
    jitter_range: Sequence[float] = (),
    crop: Sequence[int] = (),
    largest_class: float = 1.0,
    range_crop: Sequence[int] = (),
    range_crop_edges: Sequence[int] = (400, 500, 600),
    range_crop_probability: float = 0.5,
    color: bool = False,
    horizontal_flip: bool = True,
    vertical_flip: bool = False,
    quarter_turns: bool = False,
    nearest: Nearest = "floor",
) -> list[Transform]:
    """The transforms in the order in which they act.

    The three published chains:

    - semantic: resize to one of `shortest_edges`, `crop`, colour, flip, pad to `crop`;
    - panoptic (ADE20K): the same with `nearest="center"`;
    - panoptic (COCO): flip; half of the images are resized to one of `range_crop_edges` and cut to a `range_crop`; all
      are resized to one of `shortest_edges`. No colour, no padding.

    Args:
        shortest_edges: Lengths of the shorter side, of which one is drawn; empty for no such resize.
        longest_edge: Bound of the longer side; 0 for none.
        scale_range: Instead, two factors between which one is drawn, for the image's own size.
        stretch: With `scale_range`, by how much each side may differ from the factor.
        jitter_range: Instead, the same for the image fitted into `crop` (large-scale jitter: 0.1, 2.0).
        crop: `(height, width)` cut out at random; smaller images are padded to it.
        largest_class: Crops are drawn again, up to ten times, where a class has this share of the labelled pixels or
            more; 1 takes the first.
        range_crop: Least and largest side of COCO's crop; empty for none.
        range_crop_edges: Lengths of the shorter side before COCO's crop.
        range_crop_probability: Share of the images that take this way.
        color: Whether colours change as in SSD.
        horizontal_flip: Whether half of the images are mirrored left and right.
        vertical_flip: Whether half are mirrored top and bottom.
        quarter_turns: Whether images are turned by 0, 90, 180 or 270 degrees; a `crop` must be square then.
        nearest: How label maps are resized; see `windows.nearest_positions`.

    Raises:
        ValueError: If a length is negative, `crop` no pair, more than one way of choosing the size is given,
            `jitter_range` without `crop`, or `quarter_turns` with a `crop` that is not square.
    """
    refuse_negative(longest_edge=longest_edge)
    require_size(crop=crop)
    if any(edge < 1 for edge in shortest_edges):
        raise ValueError(f"`shortest_edges` must be positive. Received: {tuple(shortest_edges)}.")
    ways = [name for name, value in _named(shortest_edges, scale_range, jitter_range) if value]
    if len(ways) > 1 or (jitter_range and not crop):
        raise ValueError(
            "Give one of `shortest_edges`, `scale_range` and `jitter_range`, the last with `crop`. "
            f"Received: {', '.join(ways)}, crop={tuple(crop)}."
        )
    if quarter_turns and len(set(crop)) > 1:
        raise ValueError(
            f"`quarter_turns` needs a square `crop`, or turned images would not fit. Received: crop={tuple(crop)}."
        )
    chain: list[Transform] = []
    flips = [transforms.random_flip] if horizontal_flip else []
    if range_crop:
        chain += flips
        flips = []
        options = {"sizes": list(range_crop_edges), "probability": range_crop_probability, "nearest": nearest}
        chain.append(partial(transforms.random_range_crop, low=range_crop[0], high=range_crop[1], **options))
    chain += _resize_and_crop(
        dict(_named(shortest_edges, scale_range, jitter_range)), longest_edge, stretch, crop, largest_class, nearest
    )
    chain += [ssd_color] if color else []
    chain += [transforms.random_quarter_turn] if quarter_turns else []
    chain += flips
    chain += [partial(transforms.random_flip, vertical=True)] if vertical_flip else []
    chain += [partial(transforms.pad, size=tuple(crop))] if crop else []
    return chain


def standard_transforms(size: tuple[int, int], color: bool = True) -> list[Transform]:
    """What suits most images: half to twice their size, a crop of `size` `(height, width)`, flips, colours if `color`.

    Every result has this size, so that `training_dataset(..., image_size=size)` may fix it.
    """
    return transform_chain(scale_range=(0.5, 2.0), crop=size, color=color)


def _named(shortest_edges: Sequence, scale_range: Sequence, jitter_range: Sequence) -> list[tuple[str, Sequence]]:
    return [("shortest_edges", shortest_edges), ("scale_range", scale_range), ("jitter_range", jitter_range)]


def _resize_and_crop(
    ways: dict[str, Sequence],
    longest_edge: int,
    stretch: float,
    crop: Sequence[int],
    largest_class: float,
    nearest: Nearest,
) -> list[Transform]:
    """The resize and the crop, as one transform that resizes only what is kept."""
    cut = {"size": tuple(crop), "largest_class": largest_class} if crop else {}
    common = {**cut, "nearest": nearest}
    if ways["shortest_edges"]:
        transform = transforms.random_resized_crop if crop else transforms.resize_shortest_edge
        return [partial(transform, sizes=list(ways["shortest_edges"]), longest_edge=longest_edge, **common)]
    if ways["scale_range"]:
        low, high = ways["scale_range"]
        transform = transforms.random_scaled_crop if crop else transforms.random_scale
        return [partial(transform, low=low, high=high, stretch=stretch, **common)]
    if ways["jitter_range"]:
        low, high = ways["jitter_range"]
        return [partial(transforms.large_scale_jitter, low=low, high=high, **common)]
    return [partial(transforms.random_crop, **cut)] if crop else []
