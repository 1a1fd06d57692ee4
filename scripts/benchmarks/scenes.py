"""COCO-sized maps to measure with: read from panoptic files, or generated."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from kmaskformer.data.images import read_panoptic_ids
from kmaskformer.evaluation.files import PanopticFile, PanopticWriter, info_of_categories, read_panoptic_file
from kmaskformer.structures import DatasetInfo

NUM_CLASSES = 133
COCO_SIZE = (480, 640)


class Scene(NamedTuple):
    """`(height, width)` int32 maps of segment ids, 0 = void, and lists of `id` and contiguous `category_id`."""

    true: np.ndarray
    true_table: list[dict[str, Any]]
    predicted: np.ndarray
    predicted_table: list[dict[str, Any]]


def read_scenes(truth: PanopticFile, predictions: PanopticFile, count: int) -> tuple[list[Scene], DatasetInfo]:
    """The first images of the truth with their predictions."""
    info = info_of_categories(truth.categories)
    contiguous = {dataset_id: index for index, dataset_id in enumerate(info.dataset_ids)}
    scenes = []
    for image_id in list(truth.annotations)[:count]:
        parts: list[Any] = []
        for file in (truth, predictions):
            annotation = file.annotations[image_id]
            table = [dict(s, category_id=contiguous[s["category_id"]]) for s in annotation["segments_info"]]
            parts += [read_panoptic_ids(file.folder / annotation["file_name"]), table]
        scenes.append(Scene(*parts))
    return scenes, info


def write_scenes(folder: Path, scenes: list[Scene], info: DatasetInfo) -> tuple[Path, Path]:
    """Writes truth and predictions as COCO panoptic files and returns the two JSONs."""
    writers = [PanopticWriter(folder / f"{name}.json", info) for name in ("truth", "predictions")]
    for number, scene in enumerate(scenes):
        writers[0].add(str(number), scene.true, scene.true_table)
        writers[1].add(str(number), scene.predicted, scene.predicted_table)
    return writers[0].save(), writers[1].save()


def generate_scenes(count: int) -> tuple[list[Scene], DatasetInfo]:
    """Scenes with ragged borders and void; the two maps of one have about 7000 runs, those of COCO 6400."""
    return [_generate(np.random.default_rng(seed)) for seed in range(count)], DatasetInfo.numbered(NUM_CLASSES)


def read_or_generate(options: Any) -> tuple[list[Scene], DatasetInfo]:
    """The scenes that a command line asks for."""
    if not options.truth:
        return generate_scenes(options.images)
    truth = read_panoptic_file(options.truth, options.truth_folder)
    return read_scenes(truth, read_panoptic_file(options.predictions, options.predictions_folder), options.images)


def class_map(segment_map: np.ndarray, table: list[dict[str, Any]], void: int) -> np.ndarray:
    """`(height, width)` class ids."""
    classes = np.full(segment_map.shape, void)
    for segment in table:
        classes[segment_map == segment["id"]] = segment["category_id"]
    return classes


def _generate(rng: np.random.Generator, num_segments: int = 9) -> Scene:
    fields = rng.normal(size=(num_segments + 1, 4, 5))
    maps = []
    for roughness in (0.05, 0.05):
        rough = [_enlarge(field) + roughness * _enlarge(rng.normal(size=(30, 40))) for field in fields]
        maps.append(np.argmax(rough, axis=0).astype(np.int32))
    ids = np.concatenate([[0], rng.choice(2**24 - 1, num_segments, replace=False) + 1]).astype(np.int32)
    present = [i for i in range(1, num_segments + 1) if all((segment_map == i).any() for segment_map in maps)]
    lookup = np.where(np.isin(np.arange(num_segments + 1), present), ids, 0)
    table = [{"id": int(ids[i]), "category_id": int(rng.integers(NUM_CLASSES))} for i in present]
    return Scene(lookup[maps[0]], table, lookup[maps[1]], table)


def _enlarge(field: np.ndarray) -> np.ndarray:
    return np.asarray(Image.fromarray(field.astype(np.float32)).resize(COCO_SIZE[::-1], Image.Resampling.BILINEAR))
