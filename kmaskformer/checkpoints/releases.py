"""The published models: the thirty rows of the reference's model zoo, and their copies on the Hugging Face Hub.

`releases.csv` beside this file is the table; a row says all that is needed to find, check, build and evaluate a model.
"""

from __future__ import annotations

import csv
import dataclasses
import difflib
import functools
import typing
from importlib import resources
from pathlib import Path
from typing import Any

LARGE_IMAGES = ("swin_base", "swin_large")
"""Backbones that were trained on ImageNet at 384 pixels, the others at 224."""


@dataclasses.dataclass(frozen=True)
class Release:
    """A published model.

    Args:
        name: `<model>_<backbone>_<dataset and number of classes>`, the name for `from_preset`.
        model: `maskformer`, `per_pixel` or `per_pixel_plus`.
        backbone: Name of the backbone in a configuration.
        pixel_decoder: `fpn` or `transformer_fpn`; with the latter the queries read the transformer encoder's output.
        dataset: Name of the dataset, as of the folders of `configs/`.
        task: `semantic` or `panoptic`, what it was trained for.
        num_classes: Number of classes, without no-object.
        size_divisibility: Images are padded to a multiple of it; 0 for none.
        shortest_edge: Length of the shorter side of the images that it was evaluated on.
        longest_edge: Bound of their longer side.
        object_mask_threshold: Least score of a pair in panoptic inference; None for semantic models.
        mIoU: Published score, percent, at one scale; None for panoptic models.
        mIoU_ms_flip: With several scales and mirrored images; None where it was not published.
        PQ: Published panoptic quality, percent; None for semantic models.
        things: Contiguous ids of the countable classes, as `0-79` or `5 7-8`; "" for semantic models.
        license: Of the weights, as the Hub writes licences.
        md5_prefix: First digits of the file's MD5.
        url: Address of the file.
        hub: Hugging Face repository that has it too, or "".
    """

    name: str
    model: str
    backbone: str
    pixel_decoder: str
    dataset: str
    task: str
    num_classes: int
    size_divisibility: int
    shortest_edge: int
    longest_edge: int
    object_mask_threshold: float | None
    mIoU: float | None
    mIoU_ms_flip: float | None
    PQ: float | None
    things: str
    license: str
    md5_prefix: str
    url: str
    hub: str

    @property
    def config(self) -> str:
        """The recipe in the source tree that describes it."""
        return f"configs/{self.dataset}/{self.task}/{self.model}_{self.backbone}.yaml"

    @property
    def label_space(self) -> str:
        """Name of the table of its classes, for `data.label_spaces.label_space`."""
        names = {"coco": "coco_panoptic", "mapillary": "mapillary_vistas"}
        return f"{names.get(self.dataset, self.dataset)}_{self.num_classes}"

    @property
    def file_name(self) -> str:
        """Name of the file, which ends in the first digits of its MD5."""
        return self.url.rpartition("/")[2]

    @property
    def score(self) -> str:
        """The published score, in words."""
        if self.PQ is not None:
            return f"PQ {self.PQ}"
        return f"mIoU {self.mIoU}" + (f" ({self.mIoU_ms_flip} multi-scale, mirrored)" if self.mIoU_ms_flip else "")

    @property
    def thing_ids(self) -> tuple[int, ...]:
        """Contiguous ids of the countable classes."""
        ends = [[int(end) for end in span.split("-")] for span in self.things.split()]
        return tuple(i for span in ends for i in range(span[0], span[-1] + 1))

    def config_values(self) -> dict[str, Any]:
        """A configuration that describes the model; what is not in it has the reference's value by default."""
        encoder = self.pixel_decoder == "transformer_fpn"
        backbone: dict[str, Any] = {"name": self.backbone}
        if self.backbone in LARGE_IMAGES:
            backbone["pretrain_image_size"] = 384
        queries = {"num_queries": self.num_classes} if self.model == "per_pixel_plus" else {}
        model = {
            "name": self.model,
            "num_classes": self.num_classes,
            "size_divisibility": self.size_divisibility,
            "backbone": backbone,
            "pixel_decoder": {"name": self.pixel_decoder},
            "transformer_decoder": {"in_feature": "transformer_encoder" if encoder else "res5", **queries},
        }
        loss = "mask_classification" if self.model == "maskformer" else "per_pixel"
        return {"model": model, "loss": {"name": loss}}


@functools.cache
def releases() -> tuple[Release, ...]:
    """All rows of the table, in the order of the model zoo."""
    text = resources.files("kmaskformer.checkpoints").joinpath("releases.csv").read_text(encoding="utf-8")
    hints = typing.get_type_hints(Release)
    return tuple(
        Release(**{column: _convert(hints[column], value) for column, value in row.items()})
        for row in csv.DictReader(text.splitlines())
    )


def find_release(name: str) -> Release:
    """The release of a name.

    Raises:
        ValueError: If there is none, with the nearest names and the list of all.
    """
    named = {release.name: release for release in releases()}
    if name not in named:
        known = [*named, *(f"hf://{release.hub}" for release in releases() if release.hub)]
        close = difflib.get_close_matches(name, known, n=3) or difflib.get_close_matches(f"hf://{name}", known, n=3)
        hint = f" Did you mean {' or '.join(close)}?" if close else ""
        raise ValueError(
            f"{name!r}: no such preset, and no such folder.{hint} Known presets: {', '.join(named)}. "
            "Otherwise give a folder, or a Hugging Face repository as hf://owner/name."
        )
    return named[name]


def release_of_repository(repository: str) -> Release | None:
    """The release of which a Hugging Face repository, `owner/name`, is a copy."""
    return next((release for release in releases() if release.hub == repository), None)


def release_of_file(path: Path) -> Release | None:
    """The release whose file has this name."""
    return next((release for release in releases() if release.file_name == path.name), None)


def _convert(hint: Any, text: str) -> Any:
    if hint is str:
        return text
    kinds = [kind for kind in (typing.get_args(hint) or (hint,)) if kind is not type(None)]
    return kinds[0](text) if text else None
