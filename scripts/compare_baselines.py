"""Mask classification against per-pixel classification: `python scripts/compare_baselines.py --output runs/comparison`.

Trains MaskFormer and the paper's two per-pixel baselines with equal backbone, pixel decoder, data, steps, optimizer and
seeds, and writes `table.md`, `curves.png` and `results.json`. The paper's ablations are further studies in the same
harness. Finished runs are read, interrupted ones go on: start the same command again.
"""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

from kmaskformer.command_line.command import add_overrides, one_line_errors
from kmaskformer.comparison import report
from kmaskformer.comparison.studies import DATASETS, STUDIES, perform, plan_runs
from kmaskformer.extras import require_extra

REPOSITORY = Path(__file__).resolve().parents[1]


def main() -> None:
    """Parse the arguments, do the runs that are missing, report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--studies", nargs="+", choices=STUDIES, default=["baselines"], metavar="STUDY", help=" ".join(STUDIES)
    )
    parser.add_argument(
        "--datasets", nargs="+", choices=DATASETS, default=list(DATASETS), metavar="NAME", help=" ".join(DATASETS)
    )
    parser.add_argument(
        "--seeds", nargs="+", type=int, default=[0, 1, 2], help="at least three for a spread worth the name"
    )
    add_overrides(parser, "override a field in all runs")
    parser.add_argument("--output", type=Path, required=True, help="folder for runs, table and plot; created")
    parser.add_argument("--report-only", action="store_true", help="report the runs that are finished, do none")
    options = parser.parse_args()
    with one_line_errors():
        require_extra("plots", "matplotlib", "Drawing curves")
        _compare(options)


def _compare(options: argparse.Namespace) -> None:
    runs = plan_runs(options.studies, options.datasets, options.seeds, options.output, options.set, REPOSITORY)
    pairs = []
    for number, run in enumerate(runs, 1):
        if options.report_only and not run.result_file.is_file():
            continue
        result = perform(run)
        pairs.append((run, result))
        print(
            f"{number}/{len(runs)} {run.dataset.name}, {run.variant.name}, seed {run.seed}: mIoU {result['score']:.3f}"
        )
        _report(options, pairs)
    if not pairs:
        raise ValueError(f"{options.output}: no finished run of these studies")
    print(f"\n{(options.output / 'table.md').read_text(encoding='utf-8')}\nCurves: {options.output / 'curves.png'}")


def _report(options: argparse.Namespace, pairs: list) -> None:
    results = report.collect(pairs)
    table = report.markdown(results, options.studies)
    (options.output / "table.md").write_text(table + "\n", encoding="utf-8")
    rows = [{"dataset": dataset, "variant": variant, "runs": found} for (dataset, variant), found in results.items()]
    (options.output / "results.json").write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    report.draw(results, options.studies, options.output / "curves.png")


if __name__ == "__main__":
    main()
