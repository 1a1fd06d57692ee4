"""Means, spreads and paired differences by hand; the plot is drawn."""

from __future__ import annotations

import pytest

from kmaskformer.comparison import report

RESULTS = {
    ("dubai", "MaskFormer"): [
        {"seed": 0, "score": 0.5, "steps": 20, "parameters": 12_000_000, "curve": [(10, 0.3), (20, 0.5)]},
        {"seed": 1, "score": 0.7, "steps": 20, "parameters": 12_000_000, "curve": [(10, 0.5), (20, 0.7)]},
    ],
    ("dubai", "PerPixelBaseline"): [
        {"seed": 1, "score": 0.6, "steps": 20, "parameters": 11_000_000, "curve": [(10, 0.2), (20, 0.6)]},
        {"seed": 0, "score": 0.5, "steps": 20, "parameters": 11_000_000, "curve": [(10, 0.2), (20, 0.5)]},
    ],
    ("shapes-20", "MaskFormer"): [
        {"seed": 0, "score": 0.4, "steps": 9, "parameters": 12_500_000, "curve": [(9, 0.4)]},
    ],
}


def test_table():
    lines = report.markdown(RESULTS, ["baselines"]).splitlines()
    assert lines == [
        "### baselines",
        "",
        "| | parameters | dubai, 20 steps, 2 seeds | shapes-20, 9 steps, 1 seed |",
        "|---|---|---|---|",
        "| MaskFormer | 12.00 M to 12.50 M | 0.600 ± 0.141 | 0.400 |",
        "| PerPixelBaseline | 11.00 M | 0.550 ± 0.071 (-0.050 ± 0.071) |  |",
        "| PerPixelBaseline+ |  |  |  |",
    ]


def test_an_unfinished_comparison_tells_how_many_seeds_each_has():
    results = {**RESULTS, ("dubai", "PerPixelBaseline+"): RESULTS["dubai", "PerPixelBaseline"][:1]}
    assert "| dubai, 20 steps, 1 to 2 seeds |" in report.markdown(results, ["baselines"])


def test_spread():
    assert (report.spread([1.0, 2.0, 3.0]).mean, report.spread([1.0, 2.0, 3.0]).deviation) == (2.0, 1.0)
    assert str(report.spread([0.25])) == "0.250"


def test_plot(tmp_path):
    pytest.importorskip("matplotlib")
    report.draw(RESULTS, ["baselines"], tmp_path / "curves.png")
    assert (tmp_path / "curves.png").stat().st_size > 10_000
