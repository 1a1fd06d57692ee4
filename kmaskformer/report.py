"""What an evaluation leaves behind beside its numbers: tables, charts and the pictures to look at."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from kmaskformer import charts, visualize
from kmaskformer.data.truth import true_result
from kmaskformer.evaluation.mean_iou import MeanIoU
from kmaskformer.evaluation.score_tables import (
    Difference,
    differences,
    main_columns,
    write_classes,
    write_metrics,
    write_rows,
)
from kmaskformer.evaluation.scored_images import ScoredImages
from kmaskformer.json_files import read_json

NUM_PICTURES = 6
EXTREMES = 4
"""So many of the best images, and of the worst, are drawn."""


def write_scores(folder: Path, scores: Mapping[str, float]) -> None:
    """Writes `metrics.json`, `metrics.csv`, `classes.csv` and one `classes_<evaluator>.png` each."""
    folder.mkdir(parents=True, exist_ok=True)
    write_metrics(scores, folder / "metrics.json")
    write_metrics(scores, folder / "metrics.csv")
    write_classes(folder / "classes.csv", scores)
    for key, column in main_columns(scores).items():
        chart = charts.bar_chart(list(column), {key: list(column.values())}, title=key)
        chart.save(folder / f"classes_{key.partition('/')[0]}.png")


def write_confusion(folder: Path, evaluators: Iterable[Any]) -> None:
    """Writes `confusion.csv` (pixels) and `confusion.png` (shares) of the first evaluator that counts a matrix."""
    metrics = (getattr(_bare(evaluator), "metric", None) for evaluator in evaluators)
    metric = next((metric for metric in metrics if isinstance(metric, MeanIoU)), None)
    if metric is None:
        return
    names = metric.class_names
    rows = [[name, *row] for name, row in zip(names, metric.confusion.tolist(), strict=True)]
    write_rows(folder / "confusion.csv", [["true \\ predicted", *names, "void"], *rows])
    title = "Confusion in % of the true class: row = truth, column = prediction"
    charts.confusion_chart(metric.confusion, names, title).save(folder / "confusion.png")


def write_images(folder: Path, scored: ScoredImages, segmenter: Any, reader: Any) -> None:
    """Writes `images.csv`, every image's score, and `best_and_worst.png`: image, truth and prediction of a few."""
    scored.write(folder / "images.csv")
    scores = {image: score for image, score in scored.images().items() if not math.isnan(score)}
    chosen = list(scores)[:EXTREMES]
    chosen += [image for image in list(scores)[-EXTREMES:] if image not in chosen]
    if not chosen:
        return
    samples = find_samples(reader, chosen, scored.order())
    captions = [f"{image}: {scored.score_name} {scores[image]:.3f}" for image in chosen]
    sheet = draw_samples(segmenter, reader.info, [samples[image] for image in chosen], captions)
    sheet.save(folder / "best_and_worst.png")


def draw_samples(
    segmenter: Any, info: Any, samples: Sequence[Mapping[str, Any]], captions: Sequence[str] | None = None
) -> Image.Image:
    """A contact sheet image | truth | prediction.

    Args:
        segmenter: A `Segmenter`.
        info: The label space.
        samples: A reader's samples.
        captions: A line of text for each.
    """
    rows = []
    for sample in samples:
        result = segmenter(sample["image"])
        truth = true_result(sample, info, segmenter.task)
        rows.append((sample["image"], truth, (result.segmentation, result.segments)))
    return visualize.contact_sheet(rows, info, captions=captions)


def draw_evenly(segmenter: Any, reader: Any, count: int = NUM_PICTURES) -> Image.Image:
    """A contact sheet image | truth | prediction of samples spread evenly over a dataset."""
    indices = np.unique(np.linspace(0, len(reader) - 1, min(count, len(reader))).astype(int))
    return draw_samples(segmenter, reader.info, [reader[int(index)] for index in indices])


def find_samples(reader: Any, image_ids: Iterable[str], order: Sequence[str]) -> dict[str, Mapping[str, Any]]:
    """The reader's samples of some images.

    Readers have no index by id; but images are evaluated in the reader's order, so that each is looked for around its
    place in that, from which it is moved only where other images were left out.

    Args:
        reader: A reader.
        image_ids: Images wanted.
        order: All images, as they were evaluated.

    Raises:
        ValueError: If the reader lacks an image.
    """
    places = {image_id: place for place, image_id in enumerate(order)}
    found = {}
    for image_id in image_ids:
        nearby = sorted(range(len(reader)), key=lambda index: abs(index - places[image_id]))
        samples = (reader[index] for index in nearby)
        sample = next((sample for sample in samples if sample["image_id"] == image_id), None)
        if sample is None:
            raise ValueError(f"The reader has no image {image_id!r} that was evaluated; was its dataset changed?")
        found[image_id] = sample
    return found


def read_run(path: str | Path) -> dict[str, float | None]:
    """The scores of a run: a `metrics.json`, or a folder that holds one, itself or in `scores/`.

    Raises:
        FileNotFoundError: If there is none.
        ValueError: If the file holds something else.
    """
    path = Path(path)
    candidates = [path / "metrics.json", path / "scores" / "metrics.json"] if path.is_dir() else [path]
    file = next((candidate for candidate in candidates if candidate.is_file()), candidates[0])
    content = read_json(file)
    if not isinstance(content, dict) or not all(isinstance(v, int | float | None) for v in content.values()):
        raise ValueError(f"{file}: expected scores by name, as evaluate.py writes them. Received: other content")
    return content


def write_comparison(folder: Path, rows: Sequence[Difference], titles: Sequence[str]) -> None:
    """Writes `comparison.csv` and, for each evaluator's main score by class, `comparison_<evaluator>.png`.

    Args:
        folder: Where to write; made if it is missing.
        rows: The scores of two runs.
        titles: Names of the two.
    """
    folder.mkdir(parents=True, exist_ok=True)
    table = [(row.name, row.first, row.second, row.change) for row in rows]
    write_rows(folder / "comparison.csv", [["score", *titles, "change"], *table])
    first, second = ({row.name: getattr(row, side) for row in rows} for side in ("first", "second"))
    columns = main_columns(second)
    for key, column in main_columns(first).items():
        series = [list(column.values()), [columns[key][name] for name in column]]
        chart = charts.bar_chart(list(column), dict(zip(titles, series, strict=True)), title=key)
        chart.save(folder / f"comparison_{key.partition('/')[0]}.png")


def compare(first: str | Path, second: str | Path) -> list[Difference]:
    """The scores of two runs, as `read_run` finds them."""
    return differences(read_run(first), read_run(second))


def _bare(evaluator: Any) -> Any:
    """The evaluator within those that write files or keep single scores."""
    while hasattr(evaluator, "evaluator"):
        evaluator = evaluator.evaluator
    return evaluator
