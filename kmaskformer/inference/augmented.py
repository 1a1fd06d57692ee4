"""Test-time augmentation: the class scores of several sizes and mirror images of a picture, averaged."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from kmaskformer.inference.restore import Size
from kmaskformer.inference.strips import STRIP_BYTES, MapView, mean_semantic_map, pixel_view


@dataclasses.dataclass(frozen=True)
class Augmentation:
    """Which views of a picture are taken.

    It is for semantic maps only: pixels of all views have the same classes, while segments of different views would
    have to be matched first.

    Args:
        shortest_edges: Lengths of the shorter side of the views.
        longest_edge: Bound of the longer side; None for none.
        flip: Whether every view is taken mirrored, too.
        resize_twice: Whether views are made from the picture as resized for testing, as in the published figures, or
            from the picture itself, which keeps more detail in the larger views.

    Raises:
        ValueError: If a length is not positive or there is none.
    """

    shortest_edges: Sequence[int]
    longest_edge: int | None = None
    flip: bool = True
    resize_twice: bool = True

    def __post_init__(self) -> None:
        edges = [*self.shortest_edges, *([] if self.longest_edge is None else [self.longest_edge])]
        if not self.shortest_edges or min(edges) < 1:
            raise ValueError(
                "An augmentation needs `shortest_edges`, and all edges must be positive numbers of pixels. "
                f"Received: shortest_edges={list(self.shortest_edges)}, longest_edge={self.longest_edge}"
            )

    def views(
        self, picture: np.ndarray, resized: np.ndarray, resize: Callable[[np.ndarray, int, int | None], np.ndarray]
    ) -> Iterator[tuple[np.ndarray, bool]]:
        """The views and whether they are mirrored.

        Args:
            picture: `(height, width, 3)` at its own size.
            resized: The picture at the size of the test.
            resize: Resizes a picture to a shortest and a longest edge.
        """
        source = resized if self.resize_twice else picture
        for edge in self.shortest_edges:
            view = resize(source, edge, self.longest_edge)
            yield view, False
            if self.flip:
                yield np.ascontiguousarray(view[:, ::-1]), True


class ViewOutputs(NamedTuple):
    """A model's outputs for one view, and the sizes that lead back."""

    outputs: dict[str, Any]
    padded_size: Size
    image_size: Size
    flipped: bool


def augmented_semantic_map(
    views: Sequence[ViewOutputs], output_size: Size, before_inference: bool = False, strip_bytes: int = STRIP_BYTES
) -> tuple[Any, Any]:
    """The best class of every pixel after the scores of all views are brought to one size, mirrored back and averaged.

    The scores are those of semantic inference, or the logits of a per-pixel model.

    Args:
        views: Outputs of one image each.
        output_size: Size wanted.
        before_inference: As in `semantic_inference`.
        strip_bytes: As in `semantic_map_in_strips`; the memory does not depend on the number of views.

    Returns:
        `class_map` `(1, *output_size)` int32 contiguous class ids, and `confidence` of the same shape, 0..1.
    """
    return mean_semantic_map([_map_view(view) for view in views], output_size, before_inference, strip_bytes)


def _map_view(view: ViewOutputs) -> MapView:
    if "logits" in view.outputs:
        return pixel_view(view.outputs["logits"], view.image_size, view.flipped)
    logits = (view.outputs["class_logits"], view.outputs["mask_logits"])
    return MapView(*logits, view.padded_size, view.image_size, view.flipped)
