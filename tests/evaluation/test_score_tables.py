"""Scores by class and of two runs, as tables."""

from __future__ import annotations

import math

import pytest

from kmaskformer.evaluation import score_tables

SCORES = {
    "semantic/mIoU": 0.5,
    "semantic/IoU/sky": 0.25,
    "semantic/IoU/door/gate": 0.75,
    "panoptic/PQ": 0.5,
    "panoptic/PQ/sky": math.nan,
    "panoptic/TP/sky": 12.0,
}


def test_a_row_a_class_and_a_column_a_score(tmp_path):
    table = score_tables.class_table(SCORES)
    assert list(table) == ["semantic/IoU", "panoptic/PQ", "panoptic/TP"]
    assert table["semantic/IoU"] == {"sky": 0.25, "door/gate": 0.75}
    assert score_tables.format_classes(SCORES).splitlines() == [
        "class      semantic/IoU  panoptic/PQ  panoptic/TP",
        "sky              0.2500            -           12",
        "door/gate        0.7500            -            -",
    ]
    score_tables.write_classes(tmp_path / "classes.csv", SCORES)
    assert (tmp_path / "classes.csv").read_text().splitlines()[1:] == ["sky,0.25,,12.0", "door/gate,0.75,,"]
    assert list(score_tables.main_columns(SCORES)) == ["semantic/IoU", "panoptic/PQ"]
    assert score_tables.format_classes({"semantic/mIoU": 1.0}) == ""


def test_two_runs_side_by_side():
    rows = score_tables.differences({"a/x": 0.5, "a/y": None}, {"a/x": 0.75, "a/z": 1.0})
    assert [row.name for row in rows] == ["a/x", "a/y", "a/z"]
    assert rows[0].change == pytest.approx(0.25) and math.isnan(rows[1].second)
    assert score_tables.format_differences(rows, ("A", "B")).splitlines() == [
        "score       A       B   change",
        "a/x    0.5000  0.7500  +0.2500",
        "a/y         -       -        -",
        "a/z         -  1.0000        -",
    ]
