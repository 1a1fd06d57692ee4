"""Panoptic quality against panopticapi's steps, semantic statistics against one `bincount`, and memory."""

from __future__ import annotations

import argparse
import functools
import os
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.memory import report_memory
from benchmarks.scenes import Scene, class_map, read_or_generate, write_scenes
from benchmarks.timing import report
from kmaskformer.evaluation.files import read_panoptic_file
from kmaskformer.evaluation.mean_iou import MeanIoU
from kmaskformer.evaluation.panoptic_quality import PanopticQuality
from kmaskformer.evaluation.score_files import score_panoptic_files
from kmaskformer.structures import DatasetInfo

VOID = 255
PARTS = ("panoptic", "semantic", "memory")


def add_command(commands: argparse._SubParsersAction) -> None:
    """Adds `evaluation` to the command line."""
    parser = commands.add_parser("evaluation", help="speed of the scores on COCO-sized maps, memory of large ones")
    parser.add_argument("--images", type=int, default=20, help="number of images")
    parser.add_argument("--repeats", type=int, default=15, help="rounds over all images")
    parser.add_argument("--truth", help="COCO panoptic JSON; without it scenes are generated")
    parser.add_argument("--predictions", help="COCO panoptic JSON of the predictions")
    parser.add_argument("--truth-folder", help="panoptic PNGs; by default the JSON's path without .json")
    parser.add_argument("--predictions-folder", help="panoptic PNGs; by default the JSON's path without .json")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS), help="what to measure")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    """Prints the measurements."""
    if bool(options.truth) != bool(options.predictions):
        raise SystemExit("error: --truth and --predictions belong together; leave out both to generate scenes")
    scenes, info = read_or_generate(options)
    source = options.truth or "generated scenes"
    load = "/".join(f"{value:.1f}" for value in os.getloadavg())
    print(f"{len(scenes)} images of {source}; {os.cpu_count()} cores, load {load}", flush=True)
    if "panoptic" in options.parts:
        report_panoptic(scenes, info, options.repeats)
    if "semantic" in options.parts:
        report_semantic(scenes, info, options.repeats)
    if "memory" in options.parts:
        report_memory()


def report_panoptic(scenes: list[Scene], info: DatasetInfo, repeats: int) -> None:
    """Panoptic quality of decoded maps, and of the PNGs."""
    metric = PanopticQuality.from_info(info)
    pairs = [(scene.predicted, scene.predicted_table, scene.true, scene.true_table) for scene in scenes]
    report("panoptic quality, decoded maps", official_steps, metric.update, pairs, pairs, repeats)
    with tempfile.TemporaryDirectory() as folder:
        files = [write_scenes(Path(folder), scenes, info)]
        name = f"panoptic quality, PNGs of {len(scenes)} images"
        report(name, official_files, score_panoptic_files, files, files, repeats)


def report_semantic(scenes: list[Scene], info: DatasetInfo, repeats: int) -> None:
    """Semantic statistics for maps of several dtypes.

    The baseline's maps have void as class K already, so that it need not look for it; this package's have it as 255,
    and every value of the truth is checked.
    """
    num_classes = info.num_classes
    counts = np.zeros((num_classes + 1) ** 2, np.int64)
    baseline, metric = functools.partial(one_bincount, counts, num_classes), MeanIoU(num_classes)
    for dtype in (np.uint8, np.int32, np.int64):
        plain, maps = (_class_maps(scenes, void, dtype) for void in (num_classes, VOID))
        name = f"semantic statistics, {np.dtype(dtype).name} maps"
        report(name, baseline, metric.update, plain, maps, repeats)


def _class_maps(scenes: list[Scene], void: int, dtype: type) -> list[tuple[np.ndarray, np.ndarray]]:
    tables = [((s.predicted, s.predicted_table), (s.true, s.true_table)) for s in scenes]
    return [tuple(class_map(*one, void).astype(dtype) for one in pair) for pair in tables]


def one_bincount(counts: np.ndarray, num_classes: int, predicted: np.ndarray, true: np.ndarray) -> None:
    """The usual confusion matrix: both maps as int64, one number for each pair of classes, one `bincount` an image."""
    rows, columns = true.reshape(-1).astype(np.int64), predicted.reshape(-1).astype(np.int64)
    counts += np.bincount((num_classes + 1) * rows + columns, minlength=counts.size)


def official_steps(predicted: np.ndarray, predicted_table: list, true: np.ndarray, true_table: list) -> dict:
    """What panopticapi does for an image, on one core: unique ids of both maps, one joint histogram, matching."""
    true, predicted = true.astype(np.uint64), predicted.astype(np.uint64)
    predicted_areas = dict(zip(*(part.tolist() for part in np.unique(predicted, return_counts=True)), strict=True))
    true_areas = dict(zip(*(part.tolist() for part in np.unique(true, return_counts=True)), strict=True))
    codes, counts = np.unique(true * np.uint64(2**24) + predicted, return_counts=True)
    joint = {divmod(code, 2**24): count for code, count in zip(codes.tolist(), counts.tolist(), strict=True)}
    true_classes = {segment["id"]: segment["category_id"] for segment in true_table}
    predicted_classes = {segment["id"]: segment["category_id"] for segment in predicted_table}
    matches = {}
    for (true_id, predicted_id), overlap in joint.items():
        if true_classes.get(true_id, -1) != predicted_classes.get(predicted_id, -2):
            continue
        void = joint.get((0, predicted_id), 0)
        iou = overlap / (true_areas[true_id] + predicted_areas[predicted_id] - overlap - void)
        if iou > 0.5:
            matches[true_id, predicted_id] = iou
    return matches


def official_files(truth: Path, predictions: Path) -> None:
    """`official_steps` of every image, with the decoding of both PNGs to 32-bit ids."""
    true_tables, predicted_tables = (read_panoptic_file(path).annotations for path in (truth, predictions))
    for image_id, annotation in true_tables.items():
        maps = [decode(path.with_suffix("") / annotation["file_name"]) for path in (predictions, truth)]
        tables = [annotations[image_id]["segments_info"] for annotations in (predicted_tables, true_tables)]
        official_steps(maps[0], tables[0], maps[1], tables[1])


def decode(path: Path) -> np.ndarray:
    """`(height, width)` uint32 segment ids."""
    channels = np.array(Image.open(path), dtype=np.uint32)
    return channels[..., 0] + 256 * channels[..., 1] + 65536 * channels[..., 2]
