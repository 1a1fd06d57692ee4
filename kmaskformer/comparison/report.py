"""From the results of runs to a table and a plot."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from kmaskformer.comparison.studies import DATASETS, STUDIES, Run

Results = Mapping[tuple[str, str], Sequence[dict[str, Any]]]
"""What `perform` gave, one entry per seed, by dataset and variant."""


@dataclasses.dataclass(frozen=True)
class Spread:
    """Mean and spread over seeds.

    Args:
        mean: Arithmetic mean.
        deviation: Sample standard deviation; None for a single value.
        count: Number of values.
    """

    mean: float
    deviation: float | None
    count: int

    def __str__(self) -> str:
        return f"{self.mean:.3f}" if self.deviation is None else f"{self.mean:.3f} ± {self.deviation:.3f}"


def spread(values: Sequence[float]) -> Spread:
    """Mean and sample standard deviation; there must be a value."""
    deviation = statistics.stdev(values) if len(values) > 1 else None
    return Spread(statistics.fmean(values), deviation, len(values))


def collect(pairs: Sequence[tuple[Run, dict[str, Any]]]) -> Results:
    """Results of runs by dataset and variant, seeds in order."""
    found: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for run, result in pairs:
        found.setdefault((run.dataset.name, run.variant.name), []).append({**result, "seed": run.seed})
    return found


def markdown(results: Results, studies: Sequence[str]) -> str:
    """A table per study: one row per variant, one column per dataset, mean and spread of mIoU, difference to the first.

    The difference is paired by seed: both runs of a pair saw the same images in the same order.
    """
    datasets = [name for name in DATASETS if any(key[0] == name for key in results)]
    return "\n\n".join(_table(results, study, datasets) for study in studies)


def _table(results: Results, study: str, datasets: Sequence[str]) -> str:
    variants = STUDIES[study]
    lines = [f"### {study.replace('_', ' ')}", ""]
    lines.append(f"| | parameters | {' | '.join(_heading(results, name) for name in datasets)} |")
    lines.append("|---|---|" + "---|" * len(datasets))
    for variant in variants:
        counts = [results[key][0]["parameters"] for key in results if key[1] == variant.name]
        size = f"{min(counts) / 1e6:.2f} M" if counts else ""
        size += f" to {max(counts) / 1e6:.2f} M" if counts and max(counts) - min(counts) > 1e4 else ""
        cells = [_cell(results, name, variant.name, variants[0].name) for name in datasets]
        lines.append(f"| {variant.name} | {size} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _heading(results: Results, dataset: str) -> str:
    found = [runs for key, runs in results.items() if key[0] == dataset]
    # Of an unfinished comparison the numbers of seeds differ.
    return f"{dataset}, {found[0][0]['steps']} steps, {_seeds([len(runs) for runs in found])}"


def _seeds(counts: Sequence[int]) -> str:
    least, most = min(counts), max(counts)
    text = str(most) if least == most else f"{least} to {most}"
    return f"{text} seed" if most == 1 else f"{text} seeds"


def _cell(results: Results, dataset: str, variant: str, first: str) -> str:
    runs = results.get((dataset, variant))
    if not runs:
        return ""
    text = str(spread([run["score"] for run in runs]))
    reference = {run["seed"]: run["score"] for run in results.get((dataset, first), [])}
    differences = [run["score"] - reference[run["seed"]] for run in runs if run["seed"] in reference]
    if variant == first or not differences:
        return text
    change = spread(differences)
    return f"{text} ({change.mean:+.3f}" + (f" ± {change.deviation:.3f})" if change.deviation is not None else ")")


def draw(results: Results, studies: Sequence[str], path: str | Path) -> None:
    """Curves of mIoU over steps, a panel per study and dataset: mean over seeds and the range from least to largest.

    Needs matplotlib (`pip install .[plots]`).
    """
    from matplotlib.figure import Figure

    datasets = [name for name in DATASETS if any(key[0] == name for key in results)]
    figure = Figure(figsize=(4 * len(datasets), 3.2 * len(studies)), dpi=110, layout="constrained")
    panels = figure.subplots(len(studies), len(datasets), squeeze=False)
    for row, study in enumerate(studies):
        for column, dataset in enumerate(datasets):
            axes = panels[row][column]
            for variant in STUDIES[study]:
                _draw_curve(axes, results.get((dataset, variant.name), []), variant.name)
            axes.set(title=dataset, xlabel="steps", ylabel="mIoU" if column == 0 else None, ylim=(0, None))
            axes.grid(alpha=0.3)
            axes.legend(fontsize=7)
    figure.savefig(path)


def _draw_curve(axes: Any, runs: Sequence[dict[str, Any]], name: str) -> None:
    if not runs:
        return
    steps = [step for step, _ in runs[0]["curve"]]
    values = list(zip(*([score for _, score in run["curve"]] for run in runs), strict=True))
    means = [statistics.fmean(scores) for scores in values]
    line = axes.plot(steps, means, marker="o", markersize=3, label=f"{name} ({_seeds([len(runs)])})")[0]
    axes.fill_between(steps, [min(v) for v in values], [max(v) for v in values], alpha=0.2, color=line.get_color())
