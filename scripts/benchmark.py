"""Speed of the parts, each against a plain baseline: `python scripts/benchmark.py evaluation`.

Each subcommand prints one line per measurement: the median time of the baseline and of this package, and their ratio.
Baseline and package take turns, so that a busy machine slows both.
"""

from __future__ import annotations

import argparse
import functools
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from benchmarks import quantization, serving
from PIL import Image

from kmaskformer.evaluation.files import PanopticWriter, read_panoptic_file
from kmaskformer.evaluation.mean_iou import MeanIoU
from kmaskformer.evaluation.panoptic_quality import PanopticQuality
from kmaskformer.evaluation.score_files import score_panoptic_files
from kmaskformer.structures import DatasetInfo

NUM_CLASSES = 133
COCO_SIZE = (480, 640)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    add_evaluation_command(commands)
    serving.add_command(commands)
    quantization.add_command(commands)
    options = parser.parse_args(arguments)
    options.run(options)


def add_evaluation_command(commands: argparse._SubParsersAction) -> None:
    parser = commands.add_parser("evaluation", help="panoptic quality and semantic statistics on COCO-sized maps")
    parser.add_argument("--images", type=int, default=20)
    parser.add_argument("--repeats", type=int, default=7)
    parser.set_defaults(run=benchmark_evaluation)


def benchmark_evaluation(options: argparse.Namespace) -> None:
    """Panoptic quality against the official tool's steps, semantic statistics against one `bincount` an image."""
    scenes = [make_scene(np.random.default_rng(seed)) for seed in range(options.images)]
    panoptic = PanopticQuality(NUM_CLASSES)
    pairs = [(predicted, table, true, table) for true, predicted, table in scenes]
    _report("panoptic quality, decoded maps", official_steps, panoptic.update, pairs, pairs, options.repeats)
    with tempfile.TemporaryDirectory() as folder:
        files = [write_panoptic(Path(folder), scenes)]
        name = f"panoptic quality, PNGs of {len(scenes)} images"
        _report(name, official_files, score_panoptic_files, files, files, options.repeats)
    semantic = MeanIoU(NUM_CLASSES)
    classes = [(table_classes(predicted, table), table_classes(true, table)) for true, predicted, table in scenes]
    counts = np.zeros((NUM_CLASSES + 1) ** 2, np.int64)
    for dtype in (np.uint8, np.int32, np.int64):
        maps = [tuple(one.astype(dtype) for one in pair) for pair in classes]
        name = f"semantic statistics, {np.dtype(dtype).name} maps"
        _report(name, functools.partial(one_bincount, counts), semantic.update, maps, maps, options.repeats)
        batch = [tuple(np.stack(one) for one in zip(*maps, strict=True))]
        name = f"the same as a batch of {len(maps)}"
        _report(name, functools.partial(bincounts, counts), semantic.update, batch, batch, options.repeats)


def _report(
    name: str, baseline: Callable, ours: Callable, baseline_inputs: list, our_inputs: list, repeats: int
) -> None:
    """Prints the median time of a call of each, taking turns; the first round goes uncounted."""
    times: tuple[list[float], list[float]] = ([], [])
    for turn in range(repeats + 1):
        for inputs in zip(baseline_inputs, our_inputs, strict=True):
            for function, values, record in zip((baseline, ours), inputs, times, strict=True):
                start = time.perf_counter()
                function(*values)
                if turn:
                    record.append(1000 * (time.perf_counter() - start))
    slow, fast = (statistics.median(record) for record in times)
    print(f"{name:40} baseline {slow:8.2f} ms   here {fast:8.3f} ms   ratio {slow / fast:6.1f}", flush=True)


def make_scene(rng: np.random.Generator, num_segments: int = 9) -> tuple[np.ndarray, np.ndarray, list[dict]]:
    """A true and a predicted map of segment ids, both with ragged borders and void, and their common table.

    The two maps together have about 7000 runs, as 100 images of COCO with predictions have 6400.
    """
    fields = rng.normal(size=(num_segments + 1, 4, 5))
    maps = []
    for roughness in (0.05, 0.05):
        rough = [enlarge(field) + roughness * enlarge(rng.normal(size=(30, 40))) for field in fields]
        maps.append(np.argmax(rough, axis=0).astype(np.int32))
    ids = np.concatenate([[0], rng.choice(2**24 - 1, num_segments, replace=False) + 1]).astype(np.int32)
    present = [i for i in range(1, num_segments + 1) if all((segment_map == i).any() for segment_map in maps)]
    lookup = np.where(np.isin(np.arange(num_segments + 1), present), ids, 0)
    table = [{"id": int(ids[i]), "category_id": int(rng.integers(NUM_CLASSES))} for i in present]
    return lookup[maps[0]], lookup[maps[1]], table


def enlarge(field: np.ndarray) -> np.ndarray:
    return np.asarray(Image.fromarray(field.astype(np.float32)).resize(COCO_SIZE[::-1], Image.Resampling.BILINEAR))


def table_classes(segment_map: np.ndarray, table: list[dict]) -> np.ndarray:
    """`(height, width)` class ids, 255 where void."""
    classes = np.full(segment_map.shape, 255)
    for segment in table:
        classes[segment_map == segment["id"]] = segment["category_id"]
    return classes


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


def write_panoptic(folder: Path, scenes: list) -> tuple[Path, Path]:
    info = DatasetInfo.numbered(NUM_CLASSES)
    writers = [PanopticWriter(folder / f"{name}.json", info) for name in ("truth", "predictions")]
    for number, (true, predicted, table) in enumerate(scenes):
        for writer, segment_map in zip(writers, (true, predicted), strict=True):
            writer.add(str(number), segment_map, table)
    return writers[0].save(), writers[1].save()


def official_files(truth: Path, predictions: Path) -> None:
    """`official_steps` of every image, with the decoding of both PNGs to 32-bit ids."""
    true_tables, predicted_tables = (read_panoptic_file(path).annotations for path in (truth, predictions))
    for image_id, annotation in true_tables.items():
        maps = [decode(path.with_suffix("") / annotation["file_name"]) for path in (predictions, truth)]
        tables = [annotations[image_id]["segments_info"] for annotations in (predicted_tables, true_tables)]
        official_steps(maps[0], tables[0], maps[1], tables[1])


def decode(path: Path) -> np.ndarray:
    channels = np.array(Image.open(path), dtype=np.uint32)
    return channels[..., 0] + 256 * channels[..., 1] + 65536 * channels[..., 2]


def one_bincount(counts: np.ndarray, predicted: np.ndarray, true: np.ndarray) -> None:
    """The usual confusion matrix: both maps as int64, one number for each pair of classes, one `bincount` an image."""
    rows, columns = (np.minimum(one, NUM_CLASSES).reshape(-1).astype(np.int64) for one in (true, predicted))
    counts += np.bincount(rows * (NUM_CLASSES + 1) + columns, minlength=counts.size)


def bincounts(counts: np.ndarray, predicted: np.ndarray, true: np.ndarray) -> None:
    for pair in zip(predicted, true, strict=True):
        one_bincount(counts, *pair)


if __name__ == "__main__":
    main()
