"""Two evaluated runs side by side: `python scripts/compare_runs.py runs/a runs/b --output comparison`.

A run is a folder with the `metrics.json` that `evaluate.py` or `train.py` wrote, or that file. Prints every score of
both with the change, and with `--output` writes `comparison.csv` and a chart of each evaluator's scores by class.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from kmaskformer import report
from kmaskformer.command_line.command import one_line_errors
from kmaskformer.evaluation.score_tables import format_differences, summarize


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("first", help="the run to compare with: a folder with metrics.json, or that file")
    parser.add_argument("second", help="the other run")
    parser.add_argument("--output", help="folder for comparison.csv and charts")
    parser.add_argument("--classes", action="store_true", help="print the scores of single classes, too")
    options = parser.parse_args(arguments)
    with one_line_errors():
        _compare(options)
    return 0


def _compare(options: argparse.Namespace) -> None:
    rows = report.compare(options.first, options.second)
    titles = (f"A {Path(options.first).name}", f"B {Path(options.second).name}")
    overall = summarize({row.name: row.second for row in rows})
    print(format_differences([row for row in rows if options.classes or row.name in overall], titles))
    if options.output:
        report.write_comparison(Path(options.output), rows, titles)
        print(f"written: {options.output}")


if __name__ == "__main__":
    sys.exit(main())
