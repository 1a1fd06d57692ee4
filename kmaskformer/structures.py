"""The contracts between the parts of the package.

Everything that one part hands to another is described here and nowhere else: what a dataset is, what a sample, a
batch of targets, the model's outputs and a result look like. The module imports nothing of the package, so that
`models` and `data` can meet in it without knowing each other.
"""

from __future__ import annotations

import colorsys
import dataclasses
import functools
from typing import Any, NotRequired, TypedDict

VOID = -1
"""Value of a segment map where a pixel is in no segment (unlabelled, ignored or padding)."""

TASKS = ("semantic", "instance", "panoptic")
"""What can be asked of a model."""


@dataclasses.dataclass(frozen=True)
class DatasetInfo:
    """Every fact about a dataset's label space, in one record.

    Args:
        name: Short name, for logs and files.
        class_names: Name of each contiguous class id `0 .. num_classes - 1`.
        thing_ids: Contiguous ids of the countable classes; all others are stuff.
        colors: One `(red, green, blue)` triple, 0..255, per class. Distinct colours are generated when empty.
        ignore_value: Value of unlabelled pixels in label maps (255; 65535 in 16-bit maps).
        dataset_ids: The dataset's own category id of each class, used in files only. Equal to the contiguous ids
            when empty.

    Raises:
        ValueError: If a table's length differs from the number of classes, a thing id is out of range, or a name
            or a dataset id occurs twice.
    """

    name: str
    class_names: tuple[str, ...]
    thing_ids: tuple[int, ...] = ()
    colors: tuple[tuple[int, int, int], ...] = ()
    ignore_value: int = 255
    dataset_ids: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        num_classes = len(self.class_names)
        if num_classes == 0:
            raise ValueError("`class_names` must name at least one class. Received: class_names=()")
        _freeze(self, "class_names", tuple(str(name) for name in self.class_names))
        _freeze(self, "thing_ids", tuple(sorted(int(i) for i in self.thing_ids)))
        _freeze(self, "dataset_ids", tuple(int(i) for i in self.dataset_ids) or tuple(range(num_classes)))
        colors = tuple(tuple(int(channel) for channel in color) for color in self.colors)
        _freeze(self, "colors", colors or distinct_colors(num_classes))
        for field in ("colors", "dataset_ids"):
            if len(getattr(self, field)) != num_classes:
                raise ValueError(
                    f"`{field}` must have one entry per class ({num_classes}). Received: {len(getattr(self, field))}"
                )
        for field in ("class_names", "dataset_ids"):
            values = getattr(self, field)
            repeated = sorted({value for value in values if values.count(value) > 1})
            if repeated:
                raise ValueError(f"`{field}` must not repeat an entry. Received twice: {repeated[:5]}")
        outside = [i for i in self.thing_ids if not 0 <= i < num_classes]
        if outside:
            raise ValueError(f"`thing_ids` must lie in 0..{num_classes - 1}. Received: {outside}")

    @property
    def num_classes(self) -> int:
        """Number of classes, without no-object."""
        return len(self.class_names)

    @property
    def stuff_ids(self) -> tuple[int, ...]:
        """Contiguous ids of the classes that are not things."""
        return tuple(i for i in range(self.num_classes) if i not in set(self.thing_ids))

    @functools.cached_property
    def contiguous_ids(self) -> dict[int, int]:
        """Contiguous id of each of the `dataset_ids`."""
        return {dataset_id: index for index, dataset_id in enumerate(self.dataset_ids)}

    def to_dict(self) -> dict[str, Any]:
        """Plain containers, ready for JSON; `from_dict` reads them back."""
        return {field.name: _plain(getattr(self, field.name)) for field in dataclasses.fields(self)}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> DatasetInfo:
        """The record that `to_dict` wrote."""
        values = dict(values, colors=tuple(tuple(color) for color in values.get("colors", ())))
        return cls(**{key: tuple(value) if isinstance(value, list) else value for key, value in values.items()})

    @classmethod
    def of_model(cls, model: Any, given: DatasetInfo | None = None) -> DatasetInfo:
        """The given record, or the model's own, or numbered classes.

        Raises:
            ValueError: If it is of another number of classes than the model.
        """
        info = given or getattr(model, "dataset_info", None) or cls.numbered(model.num_classes)
        if info.num_classes != model.num_classes:
            raise ValueError(
                f"`dataset_info` must describe the model's {model.num_classes} classes. "
                f"Received: {info.num_classes} classes ({info.name})"
            )
        return info

    @classmethod
    def numbered(cls, num_classes: int) -> DatasetInfo:
        """A record for a model whose labels are unknown: classes are called `class 0`, `class 1`, ..."""
        return cls(name="unnamed", class_names=tuple(f"class {i}" for i in range(num_classes)))


class Sample(TypedDict):
    """One image with its truth, as a reader delivers it (NumPy) and as transforms keep it (tensors).

    `image`: `(height, width, 3)` uint8 RGB, upright. `segment_map`: `(height, width)` int32, index into the segment
    table or -1. `labels`: `(segments,)` int32 contiguous class ids. `is_crowd`: `(segments,)` bool. `image_id`: the
    string by which the dataset names the image.

    `membership`: only where segments may overlap, `(segments, regions)` bool; `segment_map` then holds regions, and
    this table says which segments the pixels of a region are in.
    """

    image: Any
    segment_map: Any
    labels: Any
    is_crowd: Any
    image_id: Any
    membership: NotRequired[Any]


class ModelInputs(TypedDict, total=False):
    """A batch of images, first element of what a training or evaluation dataset yields.

    `images`: `(batch, height, width, 3)` uint8. `image_sizes`: `(batch, 2)` int32, height and width of each image
    within the padded batch; everything outside is 0 after normalisation.
    """

    images: Any
    image_sizes: Any


class Targets(TypedDict, total=False):
    """Ground truth of a batch, second element of what a training dataset yields.

    `labels`: `(batch, segments)` int32. `valid`: `(batch, segments)` bool, False where the table is padded. And either
    `segment_map`: `(batch, height, width)` int32, index into the table, -1 = in no segment; or `masks`:
    `(batch, segments, height, width)` bool or uint8, which may overlap.

    An evaluation dataset adds `is_crowd` `(batch, segments)` bool, `image_id` `(batch,)` string and
    `original_size` `(batch, 2)` int32; its `segment_map` has each image's original size (padded with -1 to the
    largest of the batch), which may differ from the size of the image that the model sees. Where segments may overlap,
    it holds regions, and `membership` `(batch, segments, regions)` bool is there as in `Sample`.
    """

    labels: Any
    valid: Any
    segment_map: Any
    masks: Any
    is_crowd: Any
    image_id: Any
    original_size: Any
    membership: Any


class ModelOutputs(TypedDict, total=False):
    """What a model returns.

    Mask classification: `class_logits`: `(batch, queries, classes + 1)`, the last is no-object. `mask_logits`:
    `(batch, queries, h, w)`, h and w a quarter of the padded image.

    Per-pixel models: `logits`: `(batch, h, w, classes)`, h and w as above.

    `aux_outputs`: list of the same keys for the earlier decoder layers, with deep supervision only.
    """

    class_logits: Any
    mask_logits: Any
    logits: Any
    aux_outputs: Any


class Segment(TypedDict):
    """One row of a result's segment table.

    `id`: value in the segmentation map; from 1, 0 is void. In semantic results it is the class id, from 0, and -1 is
    void. `category_id`: contiguous class id. `label`: class name. `score`: 0..1. `area`: pixels. `box`:
    `(left, top, right, bottom)` in pixels, right and bottom exclusive.
    """

    id: int
    category_id: int
    label: str
    is_thing: bool
    score: float
    area: int
    box: tuple[int, int, int, int]


def distinct_colors(count: int) -> tuple[tuple[int, int, int], ...]:
    """`count` colours that differ from one another: golden-ratio steps of hue, alternating lightness."""
    colors, seen = [], set()
    for index in range(count):
        hue = (0.02 + index * 0.618033988749895) % 1.0
        lightness = (0.55, 0.42, 0.68)[(index // 3) % 3]
        red, green, blue = (round(channel * 255) for channel in colorsys.hls_to_rgb(hue, lightness, 0.75))
        while (red, green, blue) in seen:  # rounding makes a few of several hundred colours equal
            blue = (blue + 1) % 256
        seen.add((red, green, blue))
        colors.append((red, green, blue))
    return tuple(colors)


def _freeze(record: Any, field: str, value: Any) -> None:
    object.__setattr__(record, field, value)


def _plain(value: Any) -> Any:
    return [_plain(item) for item in value] if isinstance(value, tuple) else value
