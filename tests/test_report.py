"""What an evaluation leaves behind: the files, and that two of them compare."""

from __future__ import annotations

import csv
import json

import numpy as np
import pytest
from PIL import Image

from kmaskformer import report


class Reader:
    """Samples `image 0`, `image 1`, ...; counts how many were read."""

    def __init__(self, count):
        self.count, self.reads = count, 0

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        self.reads += 1
        return {"image_id": f"image {index}"}


def test_samples_are_found_near_their_place():
    reader, order = Reader(50), [f"image {i}" for i in range(50) if i not in (3, 20)]
    found = report.find_samples(reader, ["image 2", "image 40"], order)
    assert [found[name]["image_id"] for name in ("image 2", "image 40")] == ["image 2", "image 40"]
    assert reader.reads <= 6
    with pytest.raises(ValueError, match="The reader has no image 'image 49'"):
        report.find_samples(Reader(49), ["image 49"], order)


def scores(value):
    return {"semantic/mIoU": value, "semantic/IoU/sky": value, "semantic/IoU/road": None, "evaluation/images": 2}


@pytest.fixture()
def compare_runs(load_script):
    """The script's `main`."""
    module = load_script("compare_runs")
    return lambda *arguments: module.main([str(argument) for argument in arguments])


@pytest.fixture()
def runs(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "b" / "scores").mkdir(parents=True)
    (tmp_path / "a" / "metrics.json").write_text(json.dumps(scores(0.5)))
    (tmp_path / "b" / "scores" / "metrics.json").write_text(json.dumps(scores(0.75)))
    return str(tmp_path / "a"), str(tmp_path / "b")


def test_runs_are_compared(runs, tmp_path, compare_runs, capsys):
    assert compare_runs(*runs, "--output", tmp_path / "out") == 0
    printed = capsys.readouterr().out
    assert "semantic/mIoU      0.5000  0.7500  +0.2500" in printed and "sky" not in printed
    rows = list(csv.reader((tmp_path / "out" / "comparison.csv").open()))
    assert rows[:2] == [["score", "A a", "B b", "change"], ["semantic/mIoU", "0.5", "0.75", "0.25"]]
    assert np.asarray(Image.open(tmp_path / "out" / "comparison_semantic.png")).std() > 10
    assert compare_runs(*runs, "--classes") == 0
    assert "semantic/IoU/road       -       -        -" in capsys.readouterr().out


def test_what_is_no_run_is_named(tmp_path, compare_runs):
    with pytest.raises(SystemExit, match=r"^error: .*metrics\.json: no such JSON file"):
        compare_runs(tmp_path, tmp_path)
    (tmp_path / "metrics.json").write_text('{"a": "text"}')
    with pytest.raises(ValueError, match=r"metrics.json: expected scores by name"):
        report.read_run(tmp_path)
