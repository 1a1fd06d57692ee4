"""The baselines that the evaluation is measured against count what the package counts."""

from __future__ import annotations

import importlib

import numpy as np
import pytest

from kmaskformer.evaluation.mean_iou import MeanIoU
from kmaskformer.evaluation.panoptic_quality import PanopticQuality


@pytest.fixture()
def benchmark(repository, monkeypatch):
    """The module `benchmarks.evaluation`."""
    monkeypatch.syspath_prepend(str(repository / "scripts"))
    return importlib.import_module("benchmarks.evaluation")


def test_baselines_give_the_same_counts(benchmark):
    scenes, info = importlib.import_module("benchmarks.scenes").generate_scenes(2)
    panoptic, semantic = PanopticQuality.from_info(info), MeanIoU(info.num_classes)
    counts = np.zeros((info.num_classes + 1) ** 2, np.int64)
    matches = {}
    for number, scene in enumerate(scenes):
        maps = (scene.predicted, scene.predicted_table, scene.true, scene.true_table)
        panoptic.update(*maps)
        matches |= {(number, *pair): iou for pair, iou in benchmark.official_steps(*maps).items()}
    for maps in benchmark._class_maps(scenes, info.num_classes, np.uint8):
        benchmark.one_bincount(counts, info.num_classes, *maps)
    for maps in benchmark._class_maps(scenes, benchmark.VOID, np.uint8):
        semantic.update(*maps)
    assert panoptic.true_positives.sum() == len(matches) > 0
    assert panoptic.iou_sums.sum() == pytest.approx(sum(matches.values()))
    square = counts.reshape(info.num_classes + 1, -1)
    np.testing.assert_array_equal(semantic.confusion, square[:-1])


def test_the_command_prints_a_line_for_each_measurement(benchmark, capsys):
    main = importlib.import_module("benchmark").main
    main(["evaluation", "--images", "2", "--repeats", "1", "--parts", "panoptic", "semantic"])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("2 images of generated scenes")
    assert [line.split("  ")[0] for line in lines[1:]] == [
        "panoptic quality, decoded maps",
        "panoptic quality, PNGs of 2 images",
        *(f"semantic statistics, {dtype} maps" for dtype in ("uint8", "int32", "int64")),
    ]
